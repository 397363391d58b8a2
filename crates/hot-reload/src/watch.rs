//! Knows when to look at the disk, and keeps watching the right folders.
//!
//! The only file that names notify. An event only ever means "look again": its
//! kind and path decide nothing but whether it could be ours at all. So a lost,
//! doubled or late event costs time, never correctness; and where events cannot
//! be had, looking every so often does the same work later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use reflowd_runtime::panic::{Boundary, Breakage, Panic};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use crate::settle::{Pace, Settle, Wake};

/// How often to look where no events can be had, unless rescans are more
/// frequent still. A person who has copied a file waits about this long.
const POLL: Duration = Duration::from_secs(2);

/// Attempts to watch folders that are replaced while being watched.
const ARM_ATTEMPTS: usize = 3;

/// Whether events may be used at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eyes {
    /// Events where they can be had.
    #[default]
    Open,
    /// No watcher at all: rescans and demands only. For file systems that tell
    /// nothing, and for proving that rescans alone suffice.
    Blind,
}

/// How changes are noticed at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watching {
    /// By events.
    Events,
    /// By looking every so often, because events cannot be had.
    Polling {
        /// What the system said.
        why: String,
    },
    /// By rescans and demands only, as asked for.
    Blind,
}

/// Says when to look at the disk.
///
/// Watches a set of folders and whatever would bring them back when they are
/// not there. Whoever looks asks [`next`](Self::next) in turns.
pub struct DiskWatcher {
    eyes: Eyes,
    pace: Pace,
    settle: Settle,
    signal: Arc<Signal>,
    roots: BTreeSet<PathBuf>,
    armed: Option<Armed>,
    /// Watching that broke, here or in the library.
    breakage: Breakage,
    watching: Watching,
}

/// Asks a [`DiskWatcher`] for a look, from anywhere.
#[derive(Clone)]
pub struct Demand(Arc<Signal>);

/// What other threads tell the watcher: two flags, however often they are set.
#[derive(Default)]
struct Signal {
    changed: AtomicBool,
    demanded: AtomicBool,
    rung: Notify,
}

/// A live watcher and what it watches.
struct Armed {
    watcher: Option<RecommendedWatcher>,
    watches: Watches,
    /// Why its thread has ended unbidden, if it has.
    lost: Arc<OnceLock<Panic>>,
}

/// Belongs to the handler of a watcher, with which it goes when the library's thread ends.
struct Pulse {
    signal: Arc<Signal>,
    lost: Arc<OnceLock<Panic>>,
}

/// The folders to watch, as they are at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Watches {
    /// The roots that are there, each with device and inode: a folder of the
    /// same name may be another folder, and events would come from the old one.
    roots: BTreeMap<PathBuf, (u64, u64)>,
    /// The folders in which roots appear, vanish and are replaced.
    anchors: BTreeMap<PathBuf, (u64, u64)>,
    /// What appears, vanishes or is replaced in them.
    names: BTreeSet<PathBuf>,
}

impl Pulse {
    /// Something has happened, whatever it is.
    fn ring(&self) {
        self.signal.changed.store(true, Ordering::Release);
        self.signal.rung.notify_one();
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        // A thread that is told to end does so without a panic.
        if thread::panicking() {
            _ = self.lost.set(Panic::unwinding(Boundary::Notify));
            self.ring();
        }
    }
}

impl Demand {
    /// Look now.
    pub fn look(&self) {
        self.0.demanded.store(true, Ordering::Release);
        self.0.rung.notify_one();
    }
}

impl DiskWatcher {
    /// Watches those folders, which should be absolute paths and need not exist.
    ///
    /// The first [`next`](Self::next) returns at once: what is on the disk at
    /// the start is news too.
    #[must_use]
    pub fn new(roots: impl IntoIterator<Item = PathBuf>, pace: Pace, eyes: Eyes) -> Self {
        let watching = match eyes {
            Eyes::Open => Watching::Events,
            Eyes::Blind => Watching::Blind,
        };
        Self {
            eyes,
            pace,
            settle: Settle::new(pace, Instant::now()),
            signal: Arc::default(),
            roots: roots.into_iter().collect(),
            armed: None,
            breakage: Breakage::default(),
            watching,
        }
    }

    /// When it is time to look at the disk, and why.
    ///
    /// What happens from then on leads to another look, so nothing falls between
    /// the two. May be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Wake {
        loop {
            self.take_signals();
            if let Some(wake) = self.settle.due(Instant::now()) {
                // Folders are watched before they are read: what happens in
                // between is then seen twice rather than not at all.
                self.arm().await;
                self.take_signals();
                self.settle.look(Instant::now());
                return wake;
            }
            tokio::select! {
                () = self.signal.rung.notified() => {}
                () = sleep_until(self.settle.next()) => {}
            }
        }
    }

    /// The last look wants another at `at`.
    pub fn again(&mut self, at: Instant) {
        self.settle.again(at);
    }

    /// Watches those folders from the next look on.
    pub fn set_roots(&mut self, roots: impl IntoIterator<Item = PathBuf>) {
        let roots = roots.into_iter().collect();
        if self.roots != roots {
            self.roots = roots;
            // The look that found them has read them unwatched.
            self.settle.again(Instant::now());
        }
    }

    /// Other times from now on.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
        self.apply_pace();
    }

    /// A handle to ask for a look with.
    #[must_use]
    pub fn demand(&self) -> Demand {
        Demand(Arc::clone(&self.signal))
    }

    /// How changes are noticed at the moment.
    #[must_use]
    pub fn watching(&self) -> &Watching {
        &self.watching
    }

    /// Whether watching has broken, and is not tried again yet.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.breakage.rests()
    }

    fn take_signals(&mut self) {
        if self.signal.changed.swap(false, Ordering::AcqRel) {
            self.settle.event(Instant::now());
        }
        if self.signal.demanded.swap(false, Ordering::AcqRel) {
            self.settle.demand();
        }
    }

    /// Watches what there is to watch now, if that is not what is watched.
    async fn arm(&mut self) {
        if let Some(panic) = self.armed.as_ref().and_then(|armed| armed.lost.get().cloned()) {
            self.armed = None;
            panic.tell();
            self.broke(&panic);
        }
        if self.eyes == Eyes::Blind || self.breakage.rests() {
            return;
        }
        let (roots, armed, signal) =
            (self.roots.clone(), self.armed.take(), Arc::clone(&self.signal));
        // Asking a file system may take long, and a dead one for ever.
        let result = Boundary::Watcher.aside(move || arm(&roots, armed, &signal)).await;
        match result {
            Ok(Ok(armed)) => {
                self.armed = Some(armed);
                Boundary::Notify.works();
                self.note(Watching::Events);
            }
            Ok(Err(error)) => self.note(Watching::Polling { why: error.to_string() }),
            Err(panic) => self.broke(&panic),
        }
    }

    /// Goes without events for a while, and then watches anew.
    fn broke(&mut self, panic: &Panic) {
        let again = self.breakage.broke(panic.boundary());
        self.note(Watching::Polling { why: panic.to_string() });
        self.settle.again(again);
    }

    /// Says once that events are gone or back, and looks more often without.
    fn note(&mut self, watching: Watching) {
        match (&self.watching, &watching) {
            (Watching::Events, Watching::Polling { why }) => {
                warn!(error = %why, "cannot watch the folders; looking every so often instead");
            }
            (Watching::Polling { .. }, Watching::Events) => info!("watching the folders again"),
            _ => {}
        }
        if self.watching != watching {
            self.watching = watching;
            self.apply_pace();
        }
    }

    fn apply_pace(&mut self) {
        let mut pace = self.pace;
        if matches!(self.watching, Watching::Polling { .. }) {
            pace.rescan = pace.rescan.min(POLL);
        }
        self.settle.set_pace(pace, Instant::now());
    }
}

/// Keeps `armed` if it watches what there is, and makes a new one otherwise.
///
/// A new watcher each time: watching a replaced folder again through the old
/// one may succeed and deliver nothing.
fn arm(
    roots: &BTreeSet<PathBuf>,
    armed: Option<Armed>,
    signal: &Arc<Signal>,
) -> Result<Armed, notify::Error> {
    let mut watches = Watches::of(roots);
    if let Some(armed) = armed {
        if armed.watches == watches {
            return Ok(armed);
        }
        // Dropped before the next is made: a user has only so many.
        drop(armed);
    }
    for _ in 1..ARM_ATTEMPTS {
        let armed = Armed::new(&watches, signal);
        // A folder that vanished in between is no reason to give up events.
        let now = Watches::of(roots);
        if now == watches {
            return armed;
        }
        watches = now;
    }
    // Still moving. The next event or rescan has another go.
    Armed::new(&watches, signal)
}

impl Armed {
    fn new(watches: &Watches, signal: &Arc<Signal>) -> Result<Self, notify::Error> {
        let lost = Arc::<OnceLock<Panic>>::default();
        let pulse = Pulse { signal: Arc::clone(signal), lost: Arc::clone(&lost) };
        let interest = watches.clone();
        let handler = move |event: notify::Result<Event>| {
            Boundary::Notify.reach();
            if event.map_or(true, |event| interest.concerns(&event)) {
                pulse.ring();
            }
        };
        // notify starts its thread without looking whether that worked, and
        // panics when it finds out.
        let made = catch_unwind(AssertUnwindSafe(|| {
            let mut armed = Self {
                watcher: Some(RecommendedWatcher::new(handler, notify::Config::default())?),
                watches: watches.clone(),
                lost,
            };
            let watcher = armed.watcher.as_mut().expect("it was made a line above");
            for root in watches.roots.keys() {
                watcher.watch(root, RecursiveMode::NonRecursive)?;
            }
            for anchor in watches.anchors.keys().filter(|path| !watches.roots.contains_key(*path)) {
                // A folder above ours that we may not read: rescans will do.
                if let Err(error) = watcher.watch(anchor, RecursiveMode::NonRecursive) {
                    debug!(folder = %anchor.display(), %error, "cannot watch the folder above");
                }
            }
            Ok(armed)
        }));
        made.unwrap_or_else(|_| {
            Err(notify::Error::io(io::Error::other("the watching thread could not be started")))
        })
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        let watcher = self.watcher.take();
        // notify panics where its thread has died, which must not be contagious.
        _ = catch_unwind(AssertUnwindSafe(|| drop(watcher)));
    }
}

impl Watches {
    /// What there is to watch now.
    fn of(roots: &BTreeSet<PathBuf>) -> Self {
        let mut watches = Self::default();
        for root in roots {
            if let Some(id) = folder_id(root) {
                watches.roots.insert(root.clone(), id);
            }
            let mut name = root.as_path();
            while let Some(parent) = name.parent() {
                if let Some(id) = folder_id(parent) {
                    watches.anchors.insert(parent.to_owned(), id);
                    watches.names.insert(name.to_owned());
                    break;
                }
                name = parent;
            }
        }
        watches
    }

    /// Whether the event may be about something that we look at.
    ///
    /// Reading is not: our own looks would lead to looks for ever.
    fn concerns(&self, event: &Event) -> bool {
        if let EventKind::Access(access) = event.kind
            && access != AccessKind::Close(AccessMode::Write)
        {
            return false;
        }
        let ours = |path: &Path| {
            self.roots.contains_key(path)
                || self.names.contains(path)
                || path.parent().is_some_and(|folder| self.roots.contains_key(folder))
        };
        // An event without a path says that others were lost.
        event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(|path| ours(path))
    }
}

/// Device and inode of a folder, following symlinks.
fn folder_id(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    metadata.is_dir().then(|| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use notify::event::{AccessMode, CreateKind, Flag, ModifyKind, RenameMode};

    use super::*;

    #[track_caller]
    fn check(kind: EventKind, path: &str, concerns: bool) {
        let watches = Watches {
            roots: BTreeMap::from([("/srv/modules".into(), (1, 2))]),
            anchors: BTreeMap::from([("/srv".into(), (1, 1))]),
            names: BTreeSet::from(["/srv/modules".into(), "/srv/flows".into()]),
        };
        let event = Event::new(kind).add_path(path.into());
        assert_eq!(watches.concerns(&event), concerns, "{event:?}");
    }

    #[test]
    fn reading_is_no_reason_to_look() {
        let path = "/srv/modules/a.wasm";
        check(EventKind::Access(AccessKind::Open(AccessMode::Any)), path, false);
        check(EventKind::Access(AccessKind::Close(AccessMode::Read)), path, false);
        check(EventKind::Access(AccessKind::Any), path, false);
        check(EventKind::Access(AccessKind::Close(AccessMode::Write)), path, true);
    }

    #[test]
    fn kinds_of_writing_make_no_difference() {
        let path = "/srv/modules/a.wasm";
        check(EventKind::Create(CreateKind::File), path, true);
        check(EventKind::Modify(ModifyKind::Any), path, true);
        check(EventKind::Modify(ModifyKind::Name(RenameMode::To)), path, true);
        check(EventKind::Any, path, true);
        check(EventKind::Other, path, true);
    }

    #[test]
    fn the_folder_above_is_watched_for_the_root_alone() {
        check(EventKind::Any, "/srv/modules", true);
        check(EventKind::Any, "/srv/flows", true);
        check(EventKind::Any, "/srv/else", false);
        check(EventKind::Any, "/srv", false);
    }

    #[test]
    fn an_event_that_says_others_were_lost_always_counts() {
        let watches = Watches::default();
        assert!(watches.concerns(&Event::new(EventKind::Other)));
        let lost = Event::new(EventKind::Other).add_path("/x".into()).set_flag(Flag::Rescan);
        assert!(watches.concerns(&lost));
    }

    #[test]
    fn a_root_that_is_missing_is_awaited_in_the_nearest_folder() {
        let folder = tempfile::TempDir::new().unwrap();
        let watches = Watches::of(&BTreeSet::from([folder.path().join("a/b/c")]));
        assert!(watches.roots.is_empty());
        assert_eq!(watches.names, BTreeSet::from([folder.path().join("a")]));
        assert!(watches.anchors.contains_key(folder.path()));
    }
}
