//! Looking at the messages of an actor while it runs, without being in its way.
//!
//! A tap is a buffer between the actor and somebody who reads. The actor never waits
//! for it: what does not fit is left out and counted, and where nobody taps, all that
//! a turn does for it is to look at one flag.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;

use crate::{Message, MessageId, PortName, PortRef};

/// Messages that one tap keeps for its reader.
const MAX_MESSAGES: usize = 1024;

/// Bytes of messages that one tap keeps for its reader; a larger one is taken alone.
const MAX_BYTES: usize = 1 << 20;

/// Taps that one actor has at most, which bounds the memory that they take.
const MAX_TAPS: usize = 16;

/// Which way a message goes, as the actor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// A turn takes it.
    In,
    /// A turn, or a source, puts it out.
    Out,
}

/// What a tap is to see. What is not said is not asked.
#[derive(Clone, Debug, Default)]
pub struct TapFilter {
    /// Only this port; an inport and an outport may share a name.
    pub port: Option<PortName>,
    /// Only this way.
    pub direction: Option<Direction>,
}

/// A message that a tap has seen.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Which way it went.
    pub direction: Direction,
    /// By which port.
    pub port: PortName,
    /// The generation that took it or put it out.
    pub generation: u64,
    /// Milliseconds since the Unix epoch.
    pub time: u64,
    /// The delivery that was taken; none for what is put out.
    pub id: Option<MessageId>,
    /// The message that entered the system and led to this one; none for what enters here.
    pub correlation: Option<MessageId>,
    /// Which try of the same delivery this is, from 1 on; 0 for what is put out.
    pub attempt: u32,
    /// Whether it comes from the dead letters.
    pub replayed: bool,
    /// Whether the judge of a generation on trial put it out.
    pub judged: bool,
    /// Where it went, with the delivery's id, a wire each; none where no wire leaves.
    pub to: Vec<(PortRef, MessageId)>,
    /// What it carries.
    pub message: Message,
}

/// What a tap has seen since it was last asked.
#[derive(Debug, Default)]
pub struct Seen {
    /// Messages, oldest first.
    pub messages: Vec<Sighting>,
    /// How many did not fit after these.
    pub skipped: u64,
}

/// The actor has as many taps as it may have.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{MAX_TAPS} taps are open on this actor already; end one first")]
pub struct TooManyTaps;

/// All taps of one actor. They belong to its name, so they outlive its tasks.
#[derive(Default)]
pub(crate) struct Taps {
    any: AtomicBool,
    open: Mutex<Vec<Arc<Buffer>>>,
}

/// Sees an actor's messages for as long as it is held.
pub struct Tap {
    taps: Arc<Taps>,
    buffer: Arc<Buffer>,
}

struct Buffer {
    filter: TapFilter,
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Sighting>,
    bytes: usize,
    skipped: u64,
}

impl Taps {
    /// Opens a tap.
    pub(crate) fn open(self: &Arc<Self>, filter: TapFilter) -> Result<Tap, TooManyTaps> {
        let mut open = self.open.lock();
        if open.len() >= MAX_TAPS {
            return Err(TooManyTaps);
        }
        let (waiting, filled) = (Mutex::default(), Notify::new());
        let buffer = Arc::new(Buffer { filter, waiting, filled });
        open.push(Arc::clone(&buffer));
        self.any.store(true, Ordering::Relaxed);
        Ok(Tap { taps: Arc::clone(self), buffer })
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether anybody taps. This is all that an actor pays for when nobody does.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// How a message of that length would be taken by those who want it, so that what nobody
    /// has room for need not be made.
    pub(crate) fn offer(&self, direction: Direction, port: &PortName, bytes: usize) -> Offer {
        let open = self.open.lock();
        let (mut room, mut full) = (false, 0);
        let wanting = || open.iter().filter(|buffer| buffer.wants(direction, port));
        for buffer in wanting() {
            if buffer.waiting.lock().has_room(bytes) { room = true } else { full += 1 }
        }
        if room {
            return Offer::Wanted;
        }
        wanting().for_each(|buffer| buffer.waiting.lock().skipped += 1);
        Offer::Skipped(full)
    }

    /// Shows a message to those who want it. Returns for how many it did not fit.
    pub(crate) fn show(&self, sighting: &Sighting) -> u64 {
        let mut skipped = 0;
        for buffer in self.open.lock().iter() {
            if buffer.wants(sighting.direction, &sighting.port) && !buffer.put(sighting) {
                skipped += 1;
            }
        }
        skipped
    }
}

/// Whether a message is worth showing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Somebody has room for it.
    Wanted,
    /// Nobody has, and it is counted for so many.
    Skipped(u64),
}

impl Buffer {
    fn wants(&self, direction: Direction, port: &PortName) -> bool {
        let TapFilter { port: only, direction: way } = &self.filter;
        only.as_ref().is_none_or(|only| only == port) && way.is_none_or(|way| way == direction)
    }

    /// Takes a copy, or counts that it does not fit.
    fn put(&self, sighting: &Sighting) -> bool {
        let bytes = sighting.message.encoded_len();
        let mut waiting = self.waiting.lock();
        if !waiting.has_room(bytes) {
            waiting.skipped += 1;
            return false;
        }
        // Held by the tap, a message must not keep alive all that came with it.
        let message = sighting.message.detached();
        waiting.messages.push_back(Sighting { message, ..sighting.clone() });
        waiting.bytes += bytes;
        drop(waiting);
        self.filled.notify_one();
        true
    }
}

impl Waiting {
    fn has_room(&self, bytes: usize) -> bool {
        let fits = self.messages.len() < MAX_MESSAGES && self.bytes + bytes <= MAX_BYTES;
        // What was left out goes before what comes now.
        self.skipped == 0 && (fits || self.messages.is_empty())
    }
}

impl Tap {
    /// What was seen since the last call; waits for something to see. Cancel at will:
    /// nothing is lost.
    pub async fn next(&mut self) -> Seen {
        loop {
            {
                let mut waiting = self.buffer.waiting.lock();
                let Waiting { messages, skipped, .. } = std::mem::take(&mut *waiting);
                if !messages.is_empty() || skipped > 0 {
                    return Seen { messages: messages.into(), skipped };
                }
            }
            self.buffer.filled.notified().await;
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let mut open = self.taps.open.lock();
        open.retain(|buffer| !Arc::ptr_eq(buffer, &self.buffer));
        self.taps.any.store(!open.is_empty(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighting(port: &str, direction: Direction, bytes: usize) -> Sighting {
        Sighting {
            direction,
            port: port.parse().unwrap(),
            generation: 1,
            time: 0,
            id: None,
            correlation: None,
            attempt: 0,
            replayed: false,
            judged: false,
            to: Vec::new(),
            message: Message::error(&"x".repeat(bytes)),
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_counted_and_the_rest_is_in_order() {
        let taps = Arc::new(Taps::default());
        let mut tap = taps.open(TapFilter::default()).unwrap();
        let message = sighting("in", Direction::In, 1);
        let shown = (0..MAX_MESSAGES + 3).map(|_| taps.show(&message)).sum::<u64>();
        assert_eq!(shown, 3);
        assert_eq!(taps.offer(Direction::In, &message.port, 1), Offer::Skipped(1));
        let seen = tap.next().await;
        assert_eq!((seen.messages.len(), seen.skipped), (MAX_MESSAGES, 4));
        // There is room again, and the count begins anew.
        assert_eq!(taps.offer(Direction::In, &message.port, 1), Offer::Wanted);
        assert_eq!(taps.show(&message), 0);
        assert_eq!(tap.next().await.skipped, 0);
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_a_large_message_is_taken_alone() {
        let taps = Arc::new(Taps::default());
        let mut tap = taps.open(TapFilter::default()).unwrap();
        assert_eq!(taps.show(&sighting("in", Direction::In, 2 * MAX_BYTES)), 0);
        assert_eq!(taps.show(&sighting("in", Direction::In, 1)), 1);
        let seen = tap.next().await;
        assert_eq!((seen.messages.len(), seen.skipped), (1, 1));
    }

    #[tokio::test]
    async fn a_tap_sees_what_it_was_opened_for() {
        let taps = Arc::new(Taps::default());
        let filter = |port: Option<&str>, direction| TapFilter {
            port: port.map(|port| port.parse().unwrap()),
            direction,
        };
        for (filter, expected) in [
            (filter(None, None), 3),
            (filter(Some("a"), None), 2),
            (filter(None, Some(Direction::Out)), 2),
            (filter(Some("a"), Some(Direction::In)), 1),
        ] {
            let mut tap = taps.open(filter).unwrap();
            taps.show(&sighting("a", Direction::In, 1));
            taps.show(&sighting("a", Direction::Out, 1));
            taps.show(&sighting("b", Direction::Out, 1));
            assert_eq!(tap.next().await.messages.len(), expected);
        }
        assert!(!taps.any(), "a tap that is dropped is closed");
    }

    #[test]
    fn an_actor_has_no_more_taps_than_it_may() {
        let taps = Arc::new(Taps::default());
        let mut open: Vec<_> =
            (0..MAX_TAPS).map(|_| taps.open(TapFilter::default()).unwrap()).collect();
        assert_eq!(taps.open(TapFilter::default()).err(), Some(TooManyTaps));
        open.pop();
        assert!(taps.open(TapFilter::default()).is_ok());
    }
}
