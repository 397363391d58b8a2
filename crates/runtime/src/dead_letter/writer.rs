//! The thread that brings dead letters to disk.
//!
//! Turns only ever put a letter into memory; this thread writes it down at once,
//! and brings what is written to the disk itself at most once a second and at the
//! end. So a killed daemon loses what this thread has not taken up yet, and a machine
//! without power up to a second more. Where the disk takes nothing, letters stay in
//! memory and it is tried again each second.

use std::{
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    DeadLetters, Loss, Losses, StoreError,
    store::{self, Store},
};
use crate::{
    EventKind, Events,
    panic::{Boundary, Pauses},
};

/// From one synchronization to the next, from one attempt after a failure to the next,
/// and from one word about losses to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Letters that are written in one piece.
const BATCH: usize = 256;

/// Bytes of messages that are written in one piece, unless one is larger.
const BATCH_BYTES: usize = 1 << 20;

/// Dead letters that could not be brought to disk before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// How many.
    pub letters: usize,
}

/// Keeps the thread; a daemon that stops [closes](Self::close) it.
pub struct Keeper {
    letters: Arc<DeadLetters>,
}

impl Keeper {
    /// Writes what there is, and ends. Blocks for `patience` at most.
    ///
    /// # Errors
    /// Letters are left in memory and so lost with it.
    pub fn close(self, patience: Duration) -> Result<(), Unwritten> {
        let until = Instant::now() + patience;
        let mut ring = self.letters.ring.lock();
        ring.closing = true;
        self.letters.wake.notify_all();
        while !ring.ended {
            if self.letters.done.wait_until(&mut ring, until).timed_out() {
                break;
            }
        }
        match ring.len() {
            0 => Ok(()),
            letters => Err(Unwritten { letters }),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.letters.ring.lock().closing = true;
        self.letters.wake.notify_all();
    }
}

/// Starts the thread.
pub(super) fn start(
    letters: Arc<DeadLetters>,
    (folder, bytes): (PathBuf, u64),
    events: Arc<Events>,
) -> std::io::Result<(Keeper, JoinHandle<()>)> {
    let keeper = Keeper { letters: Arc::clone(&letters) };
    let said = Losses::default();
    let writer = Writer { letters, folder, bytes, events, said, due: Due::default() };
    let thread = thread::Builder::new().name("dead-letters".into()).spawn(|| writer.run())?;
    Ok((keeper, thread))
}

struct Writer {
    letters: Arc<DeadLetters>,
    /// The ring on disk.
    folder: PathBuf,
    /// The bytes that it may have.
    bytes: u64,
    events: Arc<Events>,
    /// Losses that were told.
    said: Losses,
    due: Due,
}

/// The known contents of the ring on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreIs {
    Whole,
    /// A round broke: what is in memory of it may not be what is on disk.
    Doubtful,
}

/// The outcome of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoundEnd {
    Done,
    /// The ring on disk could not be opened again.
    NotOpened,
    /// The end has come.
    Last,
}

/// When things may be done next; at once where nothing is said.
#[derive(Default)]
struct Due {
    write: Option<Instant>,
    sync: Option<Instant>,
    say: Option<Instant>,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Work {
    write: bool,
    sync: bool,
    say: bool,
}

impl Due {
    /// What is to be done now, of what there is to do; or the time of the next, if any.
    fn now(&self, work: Work, now: Instant) -> Result<Work, Option<Instant>> {
        let waits = |due: Option<Instant>| due.is_some_and(|due| due > now);
        let ready = Work {
            write: work.write && !waits(self.write),
            sync: work.sync && !waits(self.sync),
            say: work.say && !waits(self.say),
        };
        if ready != Work::default() {
            return Ok(ready);
        }
        let times = [(work.write, self.write), (work.sync, self.sync), (work.say, self.say)];
        Err(times.into_iter().filter(|(is, _)| *is).filter_map(|(_, due)| due).min())
    }
}

impl Writer {
    fn run(mut self) {
        let mut pauses = Pauses::default();
        let mut store = StoreIs::Whole;
        loop {
            match Boundary::DeadLetters.catch(|| self.round(store)) {
                Ok(RoundEnd::Done) => {
                    store = StoreIs::Whole;
                    pauses.succeeded();
                    Boundary::DeadLetters.works();
                }
                Ok(RoundEnd::Last) => break,
                Ok(RoundEnd::NotOpened) | Err(_) => {
                    store = StoreIs::Doubtful;
                    self.rest(Boundary::DeadLetters.again_after(&mut pauses));
                }
            }
        }
        // However the last words end, nobody waits for more.
        _ = Boundary::DeadLetters.catch(|| self.finish());
        self.letters.ring.lock().ended = true;
        self.letters.done.notify_all();
    }

    /// Waits for something to do, and does it.
    fn round(&mut self, store: StoreIs) -> RoundEnd {
        if store == StoreIs::Doubtful {
            if let Err(error) = self.open_again() {
                self.show(Err(error));
                return RoundEnd::NotOpened;
            }
            // There may be nothing to do for long.
            Boundary::DeadLetters.works();
        }
        let Some(work) = self.wait() else { return RoundEnd::Last };
        if work.write {
            let result = self.write_some();
            self.due.write = result.is_err().then(|| Instant::now() + PAUSE);
            self.show(result);
        }
        if work.sync {
            self.sync();
        }
        if work.say {
            self.say();
        }
        RoundEnd::Done
    }

    /// Goes by what is on disk, and no longer by what a round that broke has left in memory of it.
    fn open_again(&mut self) -> Result<(), StoreError> {
        let mut place = self.letters.store.lock();
        *place = None;
        let (store, lost) = Store::open(&self.folder, self.bytes)?;
        let mut ring = self.letters.ring.lock();
        let last = store.last();
        // Those that were written before it broke.
        let written = ring.letters().take_while(|letter| letter.number <= last).count();
        ring.end_writing(written);
        ring.losses.add(Loss::Damaged, lost);
        *place = Some(store);
        Ok(())
    }

    /// Does nothing for a while, unless the end comes.
    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut ring = self.letters.ring.lock();
        while !ring.closing && !self.letters.wake.wait_until(&mut ring, until).timed_out() {}
    }

    /// Waits until there is something to do; nothing, when the end has come.
    fn wait(&self) -> Option<Work> {
        loop {
            let store = self.letters.store.lock();
            let (unmarked, unsynced) = store
                .as_ref()
                .map_or((false, false), |store| (store.has_unmarked(), store.is_unsynced()));
            // Held before the store is let go: who changes either wakes this thread.
            let mut ring = self.letters.ring.lock();
            drop(store);
            if ring.closing {
                return None;
            }
            let write = ring.len() > 0 || unmarked;
            let work = Work { write, sync: unsynced, say: ring.losses != self.said };
            match self.due.now(work, Instant::now()) {
                Ok(work) => return Some(work),
                Err(next) => {
                    ring.idle = ring.len() == 0;
                    match next {
                        Some(next) => _ = self.letters.wake.wait_until(&mut ring, next),
                        None => self.letters.wake.wait(&mut ring),
                    }
                    ring.idle = false;
                }
            }
        }
    }

    /// Writes one piece, and marks that were left.
    fn write_some(&self) -> Result<(), StoreError> {
        let mut store = self.letters.store.lock();
        let Some(store) = store.as_mut() else { return Ok(()) };
        let batch = self.letters.ring.lock().begin_writing(BATCH, BATCH_BYTES);
        let mut losses = Losses::default();
        let (written, result) = store.append(&batch, &mut losses);
        let mut ring = self.letters.ring.lock();
        ring.end_writing(written);
        ring.losses.add_all(losses);
        drop(ring);
        result.and_then(|()| store.mark_again())
    }

    fn sync(&mut self) {
        self.due.sync = Some(Instant::now() + PAUSE);
        let files = self.letters.store.lock().as_mut().map(Store::take_unsynced);
        // Nobody who puts, reads or removes waits for the disk.
        let result = match files {
            Some(Ok(files)) => store::sync(&files),
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        if let Err(error) = result {
            warn!(%error, why = %error.source, "dead letters that were written may not outlive a loss of power");
        }
    }

    /// Tells of a disk that takes nothing, and of one that does so again; once each.
    fn show(&self, result: Result<(), StoreError>) {
        let trouble = result.err().map(|error| format!("{error}: {}", error.source));
        let mut ring = self.letters.ring.lock();
        let was = std::mem::replace(&mut ring.trouble, trouble.clone());
        drop(ring);
        match (was, trouble) {
            (None, Some(why)) => {
                warn!(%why, "dead letters are kept in memory only");
                self.events.record(EventKind::DeadLettersInMemory { why });
            }
            (Some(_), None) => {
                info!("dead letters are on disk again");
                self.events.record(EventKind::DeadLettersOnDisk);
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    /// Tells what has been lost since the last time.
    fn say(&mut self) {
        let losses = self.letters.lost();
        let new = losses - self.said;
        self.said = losses;
        self.due.say = Some(Instant::now() + PAUSE);
        for loss in Loss::ALL {
            let lost = new.of(loss);
            if lost.letters == 0 {
                continue;
            }
            let (letters, bytes, why) = (lost.letters, lost.bytes, loss.why());
            warn!(letters, bytes, reason = loss.name(), "dead letters are lost: {why}");
            let (reason, why) = (loss.name().into(), why.to_owned());
            self.events.record(EventKind::DeadLettersLost { letters, bytes, reason, why });
        }
    }

    /// The last words: everything that can be written is.
    fn finish(&mut self) {
        let result = loop {
            let result = self.write_some();
            if result.is_err() || self.letters.ring.lock().len() == 0 {
                break result;
            }
        };
        self.show(result);
        self.sync();
        self.say();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_done_is_done_at_once_and_the_rest_when_it_is_due() {
        let now = Instant::now();
        let later = |seconds| Some(now + Duration::from_secs(seconds));
        let due = Due { write: later(3), sync: later(2), say: None };
        let work = |write, sync, say| Work { write, sync, say };
        for (there, expected) in [
            (work(false, false, false), Err(None)),
            (work(true, false, false), Err(later(3))),
            (work(true, true, false), Err(later(2))),
            (work(true, true, true), Ok(work(false, false, true))),
        ] {
            assert_eq!(due.now(there, now), expected, "{there:?}");
        }
        let then = now + Duration::from_secs(2);
        assert_eq!(due.now(work(true, true, false), then), Ok(work(false, true, false)));
    }
}
