//! How the rest of the daemon reaches the reconciler: a queue of requests going
//! in, and what the last pass has seen coming out.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use reflowd_runtime::{ActorName, GoneBack, Precondition};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::{Demand, ModuleFile, ReloadOptions, Report, View};

use super::{rollout::BackAnswer, trials::RollBackError};

/// Passes that may wait for the one in hand.
const MAX_REQUESTS: usize = 16;

/// Asks a [`Reconciler`](crate::Reconciler) for a pass, from anywhere.
#[derive(Clone)]
pub struct Reloader {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    demand: Demand,
}

/// Something that somebody waits for.
pub(super) enum Request {
    /// A pass.
    Pass {
        options: ReloadOptions,
        precondition: Precondition,
        report: oneshot::Sender<Result<Report, ReloadError>>,
    },
    /// That an actor runs what it ran before.
    RollBack { wish: BackWish, precondition: Precondition },
}

/// Somebody wants an actor to go back.
pub(super) struct BackWish {
    pub(super) actor: ActorName,
    /// The generation's number; the last that passed, where it is not said.
    pub(super) to: Option<u64>,
    pub(super) answer: BackAnswer,
}

/// Disk is not looked at.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReloadError {
    /// Something has changed that was to be as it was.
    #[error("it has changed meanwhile; look at it again")]
    Changed,
    /// The pass broke.
    #[error(
        "reflowd itself broke over it, which is a bug in it; `reflowd events` has more, and it is tried again"
    )]
    Broke,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What the last pass has seen, for whoever asks.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) view: ArcSwap<View>,
    pub(super) modules: ArcSwap<Vec<ModuleFile>>,
    pub(super) in_sync: AtomicBool,
    /// Whether the configuration on disk is the one in force.
    pub(super) config_in_force: AtomicBool,
    /// Modules refused since the start, by reason.
    pub(super) refusal_counts: Mutex<BTreeMap<&'static str, u64>>,
    pub(super) passes: Mutex<Option<Passes>>,
    /// How many wait for a pass that they have asked for.
    asking: AtomicUsize,
}

/// One who waits for a pass, for as long as it does.
struct Asking<'a>(&'a AtomicUsize);

impl<'a> Asking<'a> {
    fn begin(asking: &'a AtomicUsize) -> Self {
        asking.fetch_add(1, Ordering::Relaxed);
        Self(asking)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// A pass has ended that was no dry run.
    pub(super) fn passed(&self, report: &Report) {
        let now = SystemTime::now();
        let mut passes = self.passes.lock();
        let before = passes.and_then(|passes| passes.last_success);
        let last_success = if report.is_clean() { Some(now) } else { before };
        *passes = Some(Passes { last: now, last_success });
    }
}

/// When passes have ended, by the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    /// The last one.
    pub last: SystemTime,
    /// The last one that has refused and held back nothing.
    pub last_success: Option<SystemTime>,
}

impl Reloader {
    /// A reloader, and where its requests arrive.
    pub(super) fn new(shared: Arc<Shared>, demand: Demand) -> (Self, mpsc::Receiver<Request>) {
        let (requests, arriving) = mpsc::channel(MAX_REQUESTS);
        (Self { requests, shared, demand }, arriving)
    }

    /// Looks at disk now and returns what came of it.
    ///
    /// # Errors
    /// Nobody has looked, and why.
    pub async fn reload(
        &self,
        options: ReloadOptions,
        precondition: Precondition,
    ) -> Result<Report, ReloadError> {
        let _asking = Asking::begin(&self.shared.asking);
        let (report, answer) = oneshot::channel();
        let request = Request::Pass { options, precondition, report };
        self.requests.send(request).await.map_err(|_| ReloadError::Stopping)?;
        // The pass broke, or the reconciler is gone.
        let gone = |_| {
            let stopping = self.requests.is_closed();
            Err(if stopping { ReloadError::Stopping } else { ReloadError::Broke })
        };
        answer.await.unwrap_or_else(gone)
    }

    /// Has an actor run what it ran before, and those that changed together with it if
    /// that is still on trial. What it leaves is banned.
    ///
    /// # Errors
    /// There is nothing to go back to, or it cannot be run.
    pub async fn roll_back(
        &self,
        actor: ActorName,
        to: Option<u64>,
        precondition: Precondition,
    ) -> Result<Vec<GoneBack>, RollBackError> {
        let (done, answer) = oneshot::channel();
        let wish = BackWish { actor, to, answer: done };
        let request = Request::RollBack { wish, precondition };
        self.requests.send(request).await.map_err(|_| RollBackError::Stopping)?;
        let gone = |_| {
            let stopping = self.requests.is_closed();
            Err(if stopping { RollBackError::Stopping } else { RollBackError::Broke })
        };
        answer.await.unwrap_or_else(gone)
    }

    /// Whether somebody waits for a pass that was asked for by [`reload`](Self::reload).
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.shared.asking.load(Ordering::Relaxed) > 0
    }

    /// Asks for a pass without waiting for it.
    pub fn demand(&self) {
        self.demand.look();
    }

    /// How each actor stands to what is on disk.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// Whether all that disk asks for is what runs.
    #[must_use]
    pub fn in_sync(&self) -> bool {
        self.shared.in_sync.load(Ordering::Relaxed)
    }

    /// Whether the configuration on disk is the one in force: it is not where it is refused,
    /// held back or cannot be read.
    #[must_use]
    pub fn config_in_force(&self) -> bool {
        self.shared.config_in_force.load(Ordering::Relaxed)
    }

    /// The module files that the last pass has seen.
    #[must_use]
    pub fn modules(&self) -> Arc<Vec<ModuleFile>> {
        self.shared.modules.load_full()
    }

    /// When passes have ended; nothing before the first one.
    #[must_use]
    pub fn passes(&self) -> Option<Passes> {
        *self.shared.passes.lock()
    }

    /// How many modules were refused since the daemon started, by reason.
    #[must_use]
    pub fn refusal_counts(&self) -> BTreeMap<&'static str, u64> {
        self.shared.refusal_counts.lock().clone()
    }
}
