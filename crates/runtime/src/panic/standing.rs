//! The health of each part of the daemon: what has broken, and whether it works again.

use std::{
    sync::{
        Arc, LazyLock, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{Boundary, Panic, PartRole};
use crate::{EventKind, Events};

/// How long a failed one-off piece of work shows as a failed part. No later success clears it: the
/// next piece may be a different one.
const SHOWN: Duration = Duration::from_secs(600);

/// Where panics are told, beside the log.
static EVENTS: OnceLock<Weak<Events>> = OnceLock::new();

/// Comes when the daemon's own data can no longer be trusted.
static UNTRUSTED: LazyLock<CancellationToken> = LazyLock::new(CancellationToken::new);

/// The record of each boundary.
static RECORDS: [PartRecord; Boundary::ALL.len()] =
    [const { PartRecord::new() }; Boundary::ALL.len()];

struct PartRecord {
    panics: AtomicU64,
    /// Set while any part has trouble, so that success on the usual path takes no lock.
    broken: AtomicBool,
    trouble: Mutex<Option<PartTrouble>>,
}

struct PartTrouble {
    why: String,
    last: Instant,
    /// When it is tried again.
    again: Option<Instant>,
}

/// The health of one part of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartHealth {
    /// The part.
    pub boundary: Boundary,
    /// Panics since the process started.
    pub panics: u64,
    /// What is wrong with it now, if anything.
    pub trouble: Option<String>,
}

impl PartRecord {
    const fn new() -> Self {
        Self {
            panics: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            trouble: Mutex::new(None),
        }
    }

    fn of(boundary: Boundary) -> &'static Self {
        &RECORDS[boundary as usize]
    }
}

impl PartHealth {
    /// The health of every part.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Boundary::ALL.iter().map(|boundary| Self::of(*boundary)).collect()
    }

    /// The health of one part.
    #[must_use]
    pub fn of(boundary: Boundary) -> Self {
        let record = PartRecord::of(boundary);
        let trouble = record.trouble.lock();
        let now = Instant::now();
        let lasts = |trouble: &&PartTrouble| {
            boundary.role() != PartRole::Piece || now.duration_since(trouble.last) < SHOWN
        };
        let said = trouble.as_ref().filter(lasts).map(|trouble| {
            let ago = now.duration_since(trouble.last).as_secs();
            let again = trouble.again.map(|at| at.saturating_duration_since(now).as_secs());
            let again = again.map_or(String::new(), |s| format!("; tried again in {s} s"));
            format!("{} ({ago} s ago{again})", trouble.why)
        });
        Self { boundary, panics: record.panics.load(Ordering::Relaxed), trouble: said }
    }

    /// A part without which the daemon is not ready, and that does not work.
    #[must_use]
    pub fn vital_failure() -> Option<Self> {
        let vital =
            Boundary::ALL.iter().filter(|b| matches!(b.role(), PartRole::Vital | PartRole::Data));
        vital.map(|boundary| Self::of(*boundary)).find(|standing| standing.trouble.is_some())
    }
}

/// Has panics told there from now on. The first call of the process counts.
pub fn tell_events(events: &Arc<Events>) {
    _ = EVENTS.set(Arc::downgrade(events));
}

/// Comes when a panic has hit the daemon's own data: then it saves what it holds and ends.
#[must_use]
pub fn untrusted() -> &'static CancellationToken {
    &UNTRUSTED
}

/// A panic was caught.
pub(super) fn broke(panic: &Panic) {
    let boundary = panic.boundary;
    let record = PartRecord::of(boundary);
    record.panics.fetch_add(1, Ordering::Relaxed);
    let why = panic.to_string();
    error!(part = boundary.name(), %why, costs = boundary.costs(), "a panic was caught");
    let trouble = PartTrouble { why: why.clone(), last: Instant::now(), again: None };
    *record.trouble.lock() = Some(trouble);
    record.broken.store(true, Ordering::Release);
    tell(EventKind::Panicked { part: boundary.name().into(), why, costs: boundary.costs().into() });
    if boundary.role() == PartRole::Data {
        UNTRUSTED.cancel();
    }
}

/// Records that the part is tried again after the pause.
pub(super) fn again(boundary: Boundary, pause: Duration) {
    if let Some(trouble) = &mut *PartRecord::of(boundary).trouble.lock() {
        trouble.again = Some(Instant::now() + pause);
    }
}

/// Records that the part has done its work.
pub(super) fn works(boundary: Boundary) {
    let record = PartRecord::of(boundary);
    if !record.broken.load(Ordering::Acquire) {
        return;
    }
    record.broken.store(false, Ordering::Release);
    if record.trouble.lock().take().is_some() {
        info!(part = boundary.name(), "the part works again");
        tell(EventKind::PartRecovered { part: boundary.name().into() });
    }
}

fn tell(kind: EventKind) {
    if let Some(events) = EVENTS.get().and_then(Weak::upgrade) {
        events.record(kind);
    }
}
