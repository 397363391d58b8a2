//! How the rest of the daemon reaches the reconciler: a queue of requests going
//! in, and what the last pass has seen coming out.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::{Demand, ModuleFile, ReloadOptions, Report, View};

/// Passes that may wait for the one in hand.
const MAX_REQUESTS: usize = 16;

/// Asks a [`Reconciler`](crate::Reconciler) for a pass, from anywhere.
#[derive(Clone)]
pub struct Reloader {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    demand: Demand,
}

/// A pass that somebody waits for.
pub(super) struct Request {
    pub(super) options: ReloadOptions,
    pub(super) report: oneshot::Sender<Report>,
}

/// What the last pass has seen, for whoever asks.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) view: ArcSwap<View>,
    pub(super) modules: ArcSwap<Vec<ModuleFile>>,
    pub(super) in_sync: AtomicBool,
    /// Modules refused since the start, by reason.
    pub(super) refusal_counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Reloader {
    /// A reloader, and where its requests arrive.
    pub(super) fn new(shared: Arc<Shared>, demand: Demand) -> (Self, mpsc::Receiver<Request>) {
        let (requests, arriving) = mpsc::channel(MAX_REQUESTS);
        (Self { requests, shared, demand }, arriving)
    }

    /// Looks at disk now and returns what came of it; nothing, when the daemon is stopping.
    pub async fn reload(&self, options: ReloadOptions) -> Option<Report> {
        let (report, answer) = oneshot::channel();
        self.requests.send(Request { options, report }).await.ok()?;
        answer.await.ok()
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

    /// The module files that the last pass has seen.
    #[must_use]
    pub fn modules(&self) -> Arc<Vec<ModuleFile>> {
        self.shared.modules.load_full()
    }

    /// How many modules were refused since the daemon started, by reason.
    #[must_use]
    pub fn refusal_counts(&self) -> BTreeMap<&'static str, u64> {
        self.shared.refusal_counts.lock().clone()
    }
}
