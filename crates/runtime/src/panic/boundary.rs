//! The boundaries that no panic crosses, each with what a panic costs there.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{self, Instant};

use super::{Panic, Pauses, injected, standing};

/// A task that ran this long before a panic starts over with the shortest pause.
pub(super) const LASTED: Duration = Duration::from_secs(60);

/// The role of a part of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartRole {
    /// The daemon is not ready while this does not work.
    Vital,
    /// It lives as long as the daemon, which can do without it for a while.
    Helper,
    /// One piece of work, such as a request. Its requester may ask again.
    Piece,
    /// Changes the daemon's own data: after a panic the daemon ends.
    Data,
}

/// Declares each boundary once: its name, its role, and what a panic costs there.
macro_rules! boundaries {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $role:ident, $costs:literal;)+) => {
        /// A kind of task, thread or request, which a panic within it does not leave.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Boundary {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Boundary {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in events, metrics and `/readyz?verbose`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The role of the part.
            #[must_use]
            pub fn role(self) -> PartRole {
                match self { $(Self::$variant => PartRole::$role,)+ }
            }

            /// The cost of a panic there.
            #[must_use]
            pub fn costs(self) -> &'static str {
                match self { $(Self::$variant => $costs,)+ }
            }
        }
    };
}

boundaries! {
    /// A pass of the reconciler, or a request that it serves.
    Pass = "pass", Vital, "the pass; it is made again after a pause that grows, or at once on request";
    /// A round of writing states.
    States = "states", Vital, "the round; the next one comes after a pause that grows";
    /// The thread that brings dead letters to disk.
    DeadLetters = "dead-letters", Vital, "an attempt to write; letters stay in memory until the next";
    /// A listener of the admin API.
    AdminListener = "admin-listener", Vital, "one connection that was being accepted";
    /// The loop that serves signals and the service manager.
    Signals = "signals", Vital, "the signal in hand";
    /// The clock that interrupts guests.
    Clock = "clock", Vital, "a tick";
    /// The thread that ends turns at their deadlines on the stock engine.
    Deadlines = "deadlines", Vital, "a look at the deadlines; the next comes at once";
    /// The thread that writes the log.
    Log = "log", Helper, "the lines in hand";
    /// The task that feeds the service manager's watchdog.
    Watchdog = "watchdog", Helper, "a ping";
    /// The exporter that sends spans to a collector.
    Spans = "spans", Helper, "the batch in hand";
    /// The task that reports queues over their limit.
    Budget = "budget", Helper, "an event";
    /// The task that writes events to disk.
    Events = "events", Helper, "an attempt to write; events stay in memory until the next, after a pause that grows";
    /// The watcher for changes of files.
    Watcher = "watcher", Helper, "events; rescans go on, and one after a pause that grows watches anew";
    /// The library's thread that reports changes of files.
    Notify = "notify", Helper, "the thread; another one watches after a pause that grows";
    /// An actor's task, between its turns.
    Actor = "actor", Piece, "the attempt; the actor fails, keeps its mailbox and tries again after a pause that grows";
    /// A source's task.
    SourceTask = "source-task", Piece, "the command in hand; the source fails and begins again after a pause that grows";
    /// A connector that puts messages out.
    Source = "source", Piece, "the run; the source fails and begins again after a pause that grows";
    /// A turn of an actor.
    Turn = "turn", Piece, "the turn, as a trap does";
    /// The making of an engine.
    Instantiate = "engine", Piece, "the engine; the actor keeps its mailbox and tries again";
    /// A turn of a judge.
    Judge = "judge", Piece, "the opinion; nothing is held against anybody, and the message is a dead letter";
    /// The reading and checking of a configuration.
    Config = "config", Piece, "the configuration, which is refused";
    /// The loading of a module.
    Load = "load", Piece, "the module, which is refused and tried again later";
    /// A module's being made ready for an actor.
    Prepare = "prepare", Piece, "the change, which is refused and tried again after a pause that grows";
    /// A module's schema for configurations, and one held against it.
    Schema = "schema", Piece, "the module or the change, which is refused and tried again later";
    /// A module's download.
    Download = "download", Piece, "the attempt; it is made again after a pause that grows";
    /// A guest's HTTP request.
    GuestHttp = "guest-http", Piece, "the guest's turn, as a trap does";
    /// A request to the admin API.
    AdminRequest = "admin-request", Piece, "the request, which is answered with 500";
    /// A connection to the admin API.
    AdminConnection = "admin-connection", Piece, "the connection";
    /// A request to a `std:http-in`.
    IngressRequest = "http-in-request", Piece, "the request, which is answered with 500";
    /// The unpacking of a request's body.
    Unpack = "unpack", Piece, "the body, whose request is answered with 500";
    /// A connection to a `std:http-in`.
    IngressConnection = "http-in-connection", Piece, "the connection";
    /// All of the daemon that is not within another boundary.
    Main = "main", Data, "the process, which ends with exit code 70";
    /// A change that is being applied.
    Change = "change", Data, "the process: it saves what it holds and ends with exit code 70";
    /// The burial of an actor or a wire that is gone.
    Burial = "burial", Data, "the process: it saves what it holds and ends with exit code 70";
}

impl Boundary {
    /// Does `work`. A panic in it is told, and is the error.
    ///
    /// # Errors
    /// The work panicked. What it had in hand is as the panic has left it.
    pub fn catch<T>(self, work: impl FnOnce() -> T) -> Result<T, Panic> {
        let within = || {
            injected::reach(self);
            work()
        };
        self.judge(catch_unwind(AssertUnwindSafe(within)))
    }

    /// The same for work that waits.
    ///
    /// # Errors
    /// As of [`catch`](Self::catch).
    pub async fn hold<T>(self, work: impl Future<Output = T>) -> Result<T, Panic> {
        let within = async {
            injected::reach(self);
            work.await
        };
        self.judge(AssertUnwindSafe(within).catch_unwind().await)
    }

    /// The same for work that blocks, on a thread that is for that.
    ///
    /// # Errors
    /// As of [`catch`](Self::catch).
    pub async fn aside<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Panic> {
        let done = tokio::task::spawn_blocking(move || self.catch(work)).await;
        match done.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(caught) => caught,
            Err(Ok(panic)) => resume_unwind(panic),
            // The runtime is ending, and everything on it with it.
            Err(Err(_)) => std::future::pending().await,
        }
    }

    /// Runs a long-lived task until it returns, restarting it after each panic.
    pub async fn keep<F: Future<Output = ()>>(self, mut task: impl FnMut() -> F) {
        let mut pauses = Pauses::default();
        loop {
            let began = Instant::now();
            let Err(_) = self.hold(task()).await else { return };
            if began.elapsed() >= LASTED {
                pauses.succeeded();
            }
            time::sleep(self.again_after(&mut pauses)).await;
        }
    }

    /// Runs a thread that never ends, restarting its work after each panic.
    pub fn keep_thread(self, mut thread: impl FnMut()) -> ! {
        let mut pauses = Pauses::short();
        loop {
            let began = std::time::Instant::now();
            _ = self.catch(&mut thread);
            if began.elapsed() >= LASTED {
                pauses.succeeded();
            }
            std::thread::park_timeout(self.again_after(&mut pauses));
        }
    }

    /// Records and returns the pause before the next attempt.
    pub fn again_after(self, pauses: &mut Pauses) -> Duration {
        let pause = pauses.after_another();
        standing::again(self, pause);
        pause
    }

    /// Panics here if a test asks for it. For code that runs on a library's thread, which is to
    /// see the panic too.
    pub fn reach(self) {
        injected::reach(self);
    }

    /// Records that the part has done its work, which clears its failure.
    pub fn works(self) {
        standing::works(self);
    }

    fn judge<T>(self, done: std::thread::Result<T>) -> Result<T, Panic> {
        done.map_err(|payload| {
            let panic = Panic::caught(self, &*payload);
            panic.tell();
            panic
        })
    }
}
