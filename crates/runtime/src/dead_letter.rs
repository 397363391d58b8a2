//! Messages that could not be delivered or processed, kept with the reason.
//!
//! Whoever has one puts it into a ring in memory, which costs a copy and never
//! waits. Where there is a folder for them, a thread writes them from there into a
//! ring on disk, which survives the daemon. Both are bounded; what is lost at
//! either bound, or to a damaged disk, is counted and told.

mod filter;
mod loss;
mod ring;
mod record;
mod segment;
mod store;
mod tidings;
mod writer;

use std::{fmt, path::Path, sync::Arc, thread::JoinHandle};

use parking_lot::{Condvar, Mutex};
use serde::{Serialize, Serializer};
use tokio::time::Instant;
use tracing::info;

pub use filter::Filter;
pub use loss::{Loss, Losses, Lost};
use ring::Ring;
pub use store::StoreError;
use store::{Found, Reader, Store};
use tidings::{News, Tidings};
pub use writer::{Keeper, Unwritten};

use crate::{ActorName, Digest, Envelope, EventKind, Events, FailureKind, envelope::unix_millis};

/// Why a message became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its turn failed, as often as it may.
    Failed(FailureKind),
    /// A source read it, and it is not a valid message.
    Unreadable(String),
    /// Its actor was removed.
    Removed,
    /// Its port lost its last wire.
    Unwired,
    /// Its actor or port is not there.
    NoTarget,
    /// It made too many hops: a runaway loop.
    MaxHops,
    /// The mailbox was full and its rule is to drop.
    Overflow,
    /// The daemon stopped before it could be processed.
    Shutdown,
}

impl Reason {
    /// Every [`class`](Self::class).
    pub const CLASSES: [&str; 14] = [
        "trap",
        "timeout",
        "turn-error",
        "guest-error",
        "unavailable",
        "remote",
        "refused",
        "unreadable",
        "removed",
        "unwired",
        "no-target",
        "max-hops",
        "overflow",
        "shutdown",
    ];

    /// One word for metrics and filters.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Failed(kind) => kind.class(),
            Self::Unreadable(_) => "unreadable",
            Self::Removed => "removed",
            Self::Unwired => "unwired",
            Self::NoTarget => "no-target",
            Self::MaxHops => "max-hops",
            Self::Overflow => "overflow",
            Self::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(kind) => kind.fmt(f),
            Self::Unreadable(why) => f.write_str(why),
            Self::Removed => f.write_str("its actor was removed"),
            Self::Unwired => f.write_str("its port lost its last wire"),
            Self::NoTarget => f.write_str("its actor or port is not there"),
            Self::MaxHops => f.write_str("it made more hops than `max_hops` allows"),
            Self::Overflow => f.write_str("the mailbox was full"),
            Self::Shutdown => f.write_str("the daemon stopped"),
        }
    }
}

/// What an actor ran when a message of it became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ran {
    /// The module.
    pub digest: Digest,
    /// The actor's generation.
    pub generation: u64,
}

/// A message that could not be delivered or processed.
///
/// As JSON it is what people and tools are shown.
#[derive(Clone, Debug, Serialize)]
#[serde(into = "Shown")]
pub struct DeadLetter {
    /// Its number, which no other letter of the same data folder has. Later ones have greater ones.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub time: u64,
    /// The actor that it was for.
    pub actor: ActorName,
    /// Why it is here.
    pub reason: Reason,
    /// What the actor ran, where that had to do with it.
    pub ran: Option<Ran>,
    /// How often it was tried.
    pub attempts: u32,
    /// The message.
    pub envelope: Envelope,
}

/// A dead letter as it is shown.
#[derive(Serialize)]
struct Shown {
    number: u64,
    time: u64,
    actor: ActorName,
    port: String,
    class: &'static str,
    reason: String,
    digest: Option<Digest>,
    generation: Option<u64>,
    attempts: u32,
    /// Whether it was taken from the dead letters before.
    replayed: bool,
    #[serde(serialize_with = "envelope_json")]
    envelope: Envelope,
}

impl From<DeadLetter> for Shown {
    fn from(letter: DeadLetter) -> Self {
        let DeadLetter { number, time, actor, reason, ran, attempts, envelope } = letter;
        Self {
            number,
            time,
            actor,
            port: envelope.port.to_string(),
            class: reason.class(),
            reason: reason.to_string(),
            digest: ran.map(|ran| ran.digest),
            generation: ran.map(|ran| ran.generation),
            attempts,
            replayed: envelope.replayed,
            envelope,
        }
    }
}

fn envelope_json<S: Serializer>(envelope: &Envelope, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Encoded<'a> {
        id: crate::MessageId,
        correlation: crate::MessageId,
        #[serde(skip_serializing_if = "Option::is_none")]
        links: Option<&'a [crate::MessageId]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        traceparent: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        tracestate: Option<&'a str>,
        port: &'a str,
        time: u64,
        hops: u32,
        message: &'a serde_json::value::RawValue,
    }
    let text = envelope.message.encode();
    let message = serde_json::from_str(&text).map_err(serde::ser::Error::custom)?;
    Encoded {
        id: envelope.id,
        correlation: envelope.correlation,
        links: envelope.links.as_deref(),
        traceparent: envelope.traceparent(),
        tracestate: envelope.tracestate(),
        port: envelope.port.as_str(),
        time: envelope.time,
        hops: envelope.hops,
        message,
    }
    .serialize(serializer)
}

/// All dead letters, in memory and on disk.
#[derive(Default)]
pub struct DeadLetters {
    /// The ring on disk, where there is one. Locked before `ring`, by whoever needs both;
    /// whoever has a letter to put does not need it.
    store: Mutex<Option<Store>>,
    ring: Mutex<Ring>,
    /// Where letters are told of, and what is still to be told.
    events: Arc<Events>,
    tidings: Mutex<Tidings>,
    /// Wakes the writer.
    wake: Condvar,
    /// Tells that the writer has ended.
    done: Condvar,
    /// Held by whoever chooses letters to take away, so that none is taken twice.
    choosing: Mutex<()>,
}

/// What is kept at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stock {
    /// Letters on disk.
    pub on_disk: usize,
    /// Letters in memory only.
    pub in_memory: usize,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes that there may be on disk; nothing where letters are only kept in memory.
    pub bound: Option<u64>,
    /// Why letters are not written to disk, while that is so.
    pub trouble: Option<String>,
}

impl DeadLetters {
    /// None yet; there will be events of those to come.
    pub(crate) fn telling(events: Arc<Events>) -> Self {
        Self { events, ..Self::default() }
    }

    /// Tells of letters that have waited for that. To be called every few seconds.
    pub fn tell(&self) {
        let news = self.tidings.lock().due(Instant::now());
        news.into_iter().for_each(|news| self.say(news));
    }

    fn say(&self, News { actor, class, letters, last, why }: News) {
        let reason = class.into();
        self.events.record(EventKind::DeadLetter { actor, reason, letters, last, why });
    }

    /// Keeps letters in `folder`, in at most `bytes`, and begins with those that are there.
    /// To be called before any letter comes. What is lost, and a disk that takes nothing,
    /// becomes an event.
    ///
    /// # Errors
    /// The folder cannot be read, and letters are kept in memory only.
    pub fn keep_on_disk(
        self: &Arc<Self>,
        folder: &Path,
        bytes: u64,
        events: &Arc<Events>,
    ) -> Result<Keeper, StoreError> {
        self.keep(folder, bytes, events).map(|(keeper, _)| keeper)
    }

    fn keep(
        self: &Arc<Self>,
        folder: &Path,
        bytes: u64,
        events: &Arc<Events>,
    ) -> Result<(Keeper, JoinHandle<()>), StoreError> {
        let mut place = self.store.lock();
        let (store, lost) = Store::open(folder, bytes)?;
        let mut ring = self.ring.lock();
        debug_assert_eq!(ring.len(), 0, "letters that are there have numbers of their own");
        ring.numbers = store.last();
        ring.losses.add(Loss::Damaged, lost);
        info!(letters = store.kept(), bytes = store.bytes(), "dead letters are kept on disk");
        drop(ring);
        *place = Some(store);
        drop(place);
        let started = writer::start(Arc::clone(self), (folder.into(), bytes), Arc::clone(events));
        started.map_err(|source| StoreError {
            path: folder.into(),
            done: "written by a thread of its own",
            source,
        })
    }

    /// Keeps a message.
    pub(crate) fn put(
        &self,
        actor: &ActorName,
        envelope: &Envelope,
        reason: Reason,
        ran: Option<Ran>,
        attempts: u32,
    ) {
        let mut envelope = envelope.clone();
        envelope.message = envelope.message.detached();
        let mut ring = self.ring.lock();
        *ring.totals.entry((actor.clone(), reason.class())).or_default() += 1;
        ring.numbers += 1;
        let (number, of) = (ring.numbers, (actor.clone(), reason.class()));
        let words = || reason.to_string();
        let news = self.tidings.lock().came(of, number, &words, Instant::now());
        let letter = DeadLetter {
            number: ring.numbers,
            time: unix_millis(),
            actor: actor.clone(),
            reason,
            ran,
            attempts,
            envelope,
        };
        ring.push(letter);
        if ring.idle {
            self.wake.notify_one();
        }
        drop(ring);
        if let Some(news) = news {
            self.say(news);
        }
    }

    /// A message fell to an overflow rule: one a second per actor is kept, the rest is only counted.
    pub(crate) fn dropped(&self, actor: &ActorName, envelope: &Envelope) {
        let now = Instant::now();
        let keep = {
            let mut ring = self.ring.lock();
            let last = ring.last_drop.get(actor).copied();
            let keep = last.is_none_or(|last| now.duration_since(last).as_secs() >= 1);
            if keep {
                ring.last_drop.insert(actor.clone(), now);
            }
            keep
        };
        if keep {
            self.put(actor, envelope, Reason::Overflow, None, 0);
        }
    }

    /// The letters that there are now and that fit, oldest first. They are read as they are
    /// asked for, and reading blocks.
    pub fn letters(self: &Arc<Self>, filter: Filter) -> Letters {
        // Nothing moves from memory to disk while both are looked at.
        let store = self.store.lock();
        let reader = store.as_ref().map(|store| store.reader(&filter));
        let ring = self.ring.lock();
        let rest: Vec<_> = ring.letters().filter(|letter| filter.fits(letter)).cloned().collect();
        drop(ring);
        Letters {
            of: Arc::clone(self),
            reader,
            rest: rest.into_iter(),
            left: filter.limit.unwrap_or(usize::MAX),
            filter,
        }
    }

    /// All that are kept, oldest first. Blocks.
    #[must_use]
    pub fn list(self: &Arc<Self>) -> Vec<Arc<DeadLetter>> {
        self.letters(Filter::default()).collect()
    }

    /// Takes away the letters that fit, and gives how many there were. Blocks.
    ///
    /// # Errors
    /// Some of them could not be marked as gone on disk. They are gone all the same, and
    /// would be back after a restart if the disk did not take the marks until then.
    pub fn purge(self: &Arc<Self>, filter: Filter) -> (u64, Result<(), StoreError>) {
        let _choosing = self.choosing.lock();
        let (mut purged, mut result) = (0, Ok(()));
        let mut letters = self.letters(filter);
        loop {
            /// Letters whose removal holds up the writer at a time.
            const AT_ONCE: usize = 1024;
            let numbers: Vec<_> =
                letters.by_ref().take(AT_ONCE).map(|letter| letter.number).collect();
            if numbers.is_empty() {
                return (purged, result);
            }
            let (count, removed) = self.remove(&numbers);
            purged += count;
            result = result.and(removed);
        }
    }

    /// Held by whoever takes letters away one by one.
    pub(crate) fn choose(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.choosing.lock()
    }

    /// Takes letters away, and gives how many of them there were.
    pub(crate) fn remove(&self, numbers: &[u64]) -> (u64, Result<(), StoreError>) {
        let mut store = self.store.lock();
        let mut ring = self.ring.lock();
        let in_memory = numbers.iter().filter(|number| ring.remove(**number)).count();
        drop(ring);
        let (on_disk, result) = match store.as_mut() {
            Some(store) => store.remove(numbers),
            None => (Vec::new(), Ok(())),
        };
        drop(store);
        // The marks are to be brought to disk, or tried again.
        self.wake.notify_one();
        ((in_memory + on_disk.len()) as u64, result)
    }

    /// How many ever came, by actor and class of reason.
    #[must_use]
    pub fn totals(&self) -> Vec<(ActorName, &'static str, u64)> {
        let ring = self.ring.lock();
        ring.totals.iter().map(|((actor, class), n)| (actor.clone(), *class, *n)).collect()
    }

    /// What is lost since the start.
    #[must_use]
    pub fn lost(&self) -> Losses {
        self.ring.lock().losses
    }

    /// What is kept.
    #[must_use]
    pub fn stock(&self) -> Stock {
        let store = self.store.lock();
        let ring = self.ring.lock();
        Stock {
            on_disk: store.as_ref().map_or(0, Store::kept),
            in_memory: ring.len(),
            bytes: store.as_ref().map_or(0, Store::bytes),
            bound: store.as_ref().map(Store::bound),
            trouble: ring.trouble.clone(),
        }
    }

    /// A letter that is listed turned out to be damaged.
    fn damaged(&self, number: u64, bytes: u64) {
        let mut store = self.store.lock();
        if store.as_mut().is_some_and(|store| store.forget(number)) {
            self.ring.lock().losses.add(Loss::Damaged, Lost { letters: 1, bytes });
            self.wake.notify_one();
        }
    }
}

/// Letters that were there when it was made, oldest first.
pub struct Letters {
    of: Arc<DeadLetters>,
    reader: Option<Reader>,
    /// Those that were in memory.
    rest: std::vec::IntoIter<Arc<DeadLetter>>,
    filter: Filter,
    left: usize,
}

impl Iterator for Letters {
    type Item = Arc<DeadLetter>;

    fn next(&mut self) -> Option<Arc<DeadLetter>> {
        self.left = self.left.checked_sub(1)?;
        while let Some(found) = self.reader.as_mut().and_then(Iterator::next) {
            match found {
                Found::Letter(letter) if self.filter.fits(&letter) => {
                    return Some((*letter).into());
                }
                Found::Letter(_) => {}
                Found::Damaged { number, bytes } => self.of.damaged(number, bytes),
            }
        }
        self.rest.next()
    }
}

#[cfg(test)]
mod tests;
