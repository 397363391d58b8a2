//! A message with what is known of its way.

use std::{
    cell::Cell,
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hasher},
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde::{Serialize, Serializer};
use thiserror::Error;
use tokio::time::Instant;

use crate::{Message, PortName, Trace};

/// Numbers that a thread takes at a time, so that threads which make ids all the
/// time do not contend for one counter.
const BLOCK: u64 = 1 << 12;

/// Names one delivery, unique across processes: 64 random bits of this process
/// and a number that no other message of it has. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    process: u64,
    number: u64,
}

impl MessageId {
    /// An id that no other message has.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "every call gives another value")]
    pub fn new() -> Self {
        static PROCESS: OnceLock<u64> = OnceLock::new();
        static NEXT_BLOCK: AtomicU64 = AtomicU64::new(0);
        thread_local! {
            /// The next number of this thread's block.
            static NUMBER: Cell<u64> = const { Cell::new(0) };
        }
        // The standard library seeds its hashers from the system's random numbers.
        let process = *PROCESS.get_or_init(|| RandomState::new().build_hasher().finish());
        let number = NUMBER.with(|number| {
            let mut next = number.get();
            if next.is_multiple_of(BLOCK) {
                next = NEXT_BLOCK.fetch_add(BLOCK, Ordering::Relaxed) + 1;
            }
            number.set(next + 1);
            next
        });
        Self { process, number }
    }

    /// The id as a number, for whoever identifies by such.
    #[must_use]
    pub fn as_u128(&self) -> u128 {
        (u128::from(self.process) << 64) | u128::from(self.number)
    }
}

/// Not 32 hexadecimal digits.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is no message id: 32 hexadecimal digits")]
pub struct MessageIdError(String);

impl FromStr for MessageId {
    type Err = MessageIdError;

    fn from_str(text: &str) -> Result<Self, MessageIdError> {
        let error = || MessageIdError(text.chars().take(40).collect());
        if text.len() != 32 || !text.is_ascii() {
            return Err(error());
        }
        let half = |part: &str| u64::from_str_radix(part, 16).map_err(|_| error());
        Ok(Self { process: half(&text[..16])?, number: half(&text[16..])? })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.process, self.number)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A message for one inport, and where it comes from.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// This delivery.
    pub id: MessageId,
    /// The message that entered the system and led to this one.
    pub correlation: MessageId,
    /// Messages that a join took beside the one whose correlation this carries.
    pub links: Option<Arc<[MessageId]>>,
    /// The trace that it belongs to, where the entry had one or it is collected here.
    pub trace: Option<Arc<Trace>>,
    /// Milliseconds since the Unix epoch at which this delivery was made.
    pub time: u64,
    /// Turns between the entry and here.
    pub hops: u32,
    /// The inport that it is for.
    pub port: PortName,
    /// Whether it comes from the dead letters.
    pub replayed: bool,
    /// Whether it was put out by the judge of a generation on trial, so that failing on
    /// it counts against nobody.
    pub judged: bool,
    /// What it carries.
    pub message: Message,
}

impl Envelope {
    /// A message that enters the system.
    #[must_use]
    pub fn entering(port: PortName, message: Message, trace: Option<Arc<Trace>>) -> Self {
        let id = MessageId::new();
        Self {
            id,
            correlation: id,
            links: None,
            trace,
            time: unix_millis(),
            hops: 0,
            port,
            replayed: false,
            judged: false,
            message,
        }
    }

    /// Its trace context as W3C writes it.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        self.trace.as_deref().map(|trace| trace.context.to_string())
    }

    /// The vendors' part of its trace.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.trace.as_deref()?.state.as_deref()
    }

    /// The context's `meta`: the envelope as a guest may see it.
    #[must_use]
    pub fn meta(&self) -> Bytes {
        #[derive(Serialize)]
        struct Meta<'a> {
            id: MessageId,
            correlation: MessageId,
            #[serde(skip_serializing_if = "Option::is_none")]
            links: Option<&'a [MessageId]>,
            #[serde(skip_serializing_if = "Option::is_none")]
            traceparent: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            tracestate: Option<&'a str>,
            time: u64,
            hops: u32,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            replayed: bool,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            judged: bool,
        }
        let meta = Meta {
            id: self.id,
            correlation: self.correlation,
            links: self.links.as_deref(),
            traceparent: self.traceparent(),
            tracestate: self.tracestate(),
            time: self.time,
            hops: self.hops,
            replayed: self.replayed,
            judged: self.judged,
        };
        serde_json::to_vec(&meta).expect("a struct of strings and numbers can be encoded").into()
    }
}

/// What the outputs of one turn inherit from what the turn took.
#[derive(Clone, Debug)]
pub(crate) struct Lineage {
    pub(crate) correlation: MessageId,
    /// The correlations of the others that a join took.
    pub(crate) links: Option<Arc<[MessageId]>>,
    pub(crate) trace: Option<Arc<Trace>>,
    pub(crate) hops: u32,
}

impl Lineage {
    /// From the messages of one turn: the first gives correlation and trace, the others are linked.
    pub(crate) fn of(first: &Envelope, others: &[&Envelope]) -> Self {
        let hops = others.iter().map(|envelope| envelope.hops).fold(first.hops, u32::max);
        // Most turns take one message, and then there is nothing to allocate.
        let links =
            (!others.is_empty()).then(|| others.iter().map(|other| other.correlation).collect());
        Self { correlation: first.correlation, links, trace: first.trace.clone(), hops }
    }

    /// The correlations of all messages that the turn took.
    pub(crate) fn correlations(&self) -> impl Iterator<Item = MessageId> {
        let links = self.links.as_deref().unwrap_or_default();
        std::iter::once(self.correlation).chain(links.iter().copied())
    }
}

/// One moment by both clocks. Asking a clock is a fair part of a short turn, so
/// all that leaves a turn leaves at the same moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) instant: Instant,
    unix_nanos: u64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Self { instant: Instant::now(), unix_nanos }
    }

    /// Nanoseconds since the Unix epoch.
    pub(crate) fn unix_nanos(&self) -> u64 {
        self.unix_nanos
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn unix_millis(&self) -> u64 {
        self.unix_nanos / 1_000_000
    }
}

/// How long the calendar is told from the running clock before it is looked at again.
const LOOK: Duration = Duration::from_millis(10);

/// Tells the calendar's time from the running clock's, which has been read anyway, and
/// looks it up now and then.
pub(crate) struct Calendar {
    looked: Moment,
}

impl Calendar {
    pub(crate) fn new() -> Self {
        Self { looked: Moment::now() }
    }

    /// The moment of `instant`, which has only just been.
    pub(crate) fn moment(&mut self, instant: Instant) -> Moment {
        let since = instant.saturating_duration_since(self.looked.instant);
        if since > LOOK {
            self.looked = Moment::now();
            return self.looked;
        }
        let unix_nanos = self.looked.unix_nanos + u64::from(since.subsec_nanos());
        Moment { instant, unix_nanos }
    }
}

/// Where messages come from that leave an actor together.
pub(crate) struct Origin {
    /// What they inherit; none where they enter the system.
    pub(crate) lineage: Option<Lineage>,
    pub(crate) at: Moment,
    /// Whether a judge puts them out.
    pub(crate) judged: bool,
}

impl Origin {
    /// A message from here on its way to `port`.
    pub(crate) fn envelope(&self, port: PortName, message: Message) -> Envelope {
        let Some(lineage) = &self.lineage else {
            return Envelope::entering(port, message, None);
        };
        Envelope {
            id: MessageId::new(),
            correlation: lineage.correlation,
            links: lineage.links.clone(),
            trace: lineage.trace.clone(),
            time: self.at.unix_millis(),
            hops: lineage.hops.saturating_add(1),
            port,
            replayed: false,
            judged: self.judged,
            message,
        }
    }
}

/// Milliseconds since the Unix epoch, for people and envelopes, never for deadlines.
#[must_use]
pub fn unix_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_messages_have_the_same_id() {
        let many = || (0..3 * BLOCK).map(|_| MessageId::new()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(many)).collect();
        let ids = threads.into_iter().flat_map(|thread| thread.join().unwrap());
        assert_eq!(ids.collect::<HashSet<_>>().len() as u64, 4 * 3 * BLOCK);
    }
}
