//! The signals that the daemon obeys, and what each asks for.
//!
//! SIGHUP has two meanings. An operator sends it so that disk is looked at; the kernel or a
//! shell sends it because the terminal is gone that the daemon was started in. What tells them
//! apart is whether the terminal is still there.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::process;

/// How long a terminal has to be gone, without a SIGHUP for it, until the daemon counts as
/// detached from it, as by `disown`. A shell passes the hangup on at once.
const DETACHED_AFTER: Duration = Duration::from_secs(2);

/// Signals that the daemon listens to.
pub(crate) struct Signals {
    terminate: Signal,
    /// Nothing where this signal was already ignored when the daemon was started.
    interrupt: Option<Signal>,
    hangup: Option<Signal>,
    terminal: Terminal,
}

/// What a signal asks for.
pub(crate) enum Wish {
    /// To stop, by the signal of that name.
    Stop(&'static str),
    /// To look at disk.
    LookAtDisk,
}

impl Signals {
    /// Listens from now on.
    ///
    /// SIGHUP and SIGINT that are ignored stay so: that is what `nohup` is for, and a shell
    /// without job control has the commands that it puts into the background ignore SIGINT.
    ///
    /// # Errors
    /// The system does not let it.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        let unless_ignored = |kind: SignalKind| {
            (!process::ignores(kind.as_raw_value())).then(|| listen(kind)).transpose()
        };
        Ok(Self {
            interrupt: unless_ignored(SignalKind::interrupt())?,
            hangup: unless_ignored(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            terminal: Terminal::new(Presence::now()),
        })
    }

    /// The next thing that a signal asks for.
    pub(crate) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop("SIGTERM"),
            () = received(&mut self.interrupt) => Wish::Stop("SIGINT"),
            () = received(&mut self.hangup) => match self.hung_up() {
                true => Wish::Stop("SIGHUP"),
                false => Wish::LookAtDisk,
            },
        }
    }

    /// Returns the name of the signal that says stop, when one does.
    pub(crate) async fn stop(&mut self) -> &'static str {
        loop {
            if let Wish::Stop(name) = self.next().await {
                return name;
            }
        }
    }

    /// Returns the name of the signal by which somebody insists that the daemon stop at once.
    ///
    /// A SIGHUP does not: kernel and shell both send one when a terminal is closed.
    pub(crate) async fn insist(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            () = received(&mut self.interrupt) => "SIGINT",
        }
    }

    /// Whether a SIGHUP that has come means that the terminal is gone.
    ///
    /// To be asked again once the reload is over that it was taken for: where the shell ends
    /// before its terminal does, the kernel sends the signal a moment before it takes the
    /// terminal away.
    pub(crate) fn hung_up(&self) -> bool {
        self.terminal.hung_up(Presence::now())
    }

    /// Notices when the daemon has outlived its terminal. To be called every now and then.
    pub(crate) fn look_at_terminal(&mut self) {
        if self.terminal != Terminal::None {
            self.terminal.look(Presence::now(), Instant::now());
        }
    }
}

/// Waits for a signal; for ever, if it is ignored.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

/// What a look for the terminal of this process finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    There,
    Gone,
}

impl Presence {
    fn now() -> Self {
        if process::has_terminal() { Self::There } else { Self::Gone }
    }
}

/// The terminal that the daemon was started in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Terminal {
    /// There was none, or the daemon has outlived it: it does not belong to one.
    None,
    /// It is there.
    There,
    /// It was found gone, and no SIGHUP has come for it yet.
    Gone { since: Instant },
}

impl Terminal {
    fn new(seen: Presence) -> Self {
        match seen {
            Presence::There => Self::There,
            Presence::Gone => Self::None,
        }
    }

    /// Whether a SIGHUP says that it is gone.
    fn hung_up(self, seen: Presence) -> bool {
        self != Self::None && seen == Presence::Gone
    }

    /// `There` => `Gone` => `None`, or back to `There`.
    fn look(&mut self, seen: Presence, now: Instant) {
        *self = match *self {
            Self::None => Self::None,
            _ if seen == Presence::There => Self::There,
            Self::There => Self::Gone { since: now },
            Self::Gone { since } if now.duration_since(since) < DETACHED_AFTER => {
                Self::Gone { since }
            }
            Self::Gone { .. } => Self::None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_means_the_terminal_only_where_there_was_one() {
        use Presence::{Gone, There};
        for (at_start, now, hung_up) in
            [(There, There, false), (There, Gone, true), (Gone, Gone, false)]
        {
            assert_eq!(Terminal::new(at_start).hung_up(now), hung_up);
        }
    }

    #[test]
    fn a_daemon_that_has_outlived_its_terminal_takes_sighup_for_a_reload() {
        let mut terminal = Terminal::new(Presence::There);
        let began = Instant::now();
        terminal.look(Presence::There, began);
        assert!(terminal.hung_up(Presence::Gone));
        terminal.look(Presence::Gone, began);
        assert!(terminal.hung_up(Presence::Gone), "the shell may still be about to pass it on");
        terminal.look(Presence::Gone, began + DETACHED_AFTER / 2);
        assert!(terminal.hung_up(Presence::Gone));
        terminal.look(Presence::Gone, began + DETACHED_AFTER);
        assert!(!terminal.hung_up(Presence::Gone), "it was detached");
        terminal.look(Presence::Gone, began + DETACHED_AFTER * 2);
        assert!(!terminal.hung_up(Presence::Gone), "and stays so");
    }
}
