//! Messages that could not be delivered or processed, kept with the reason.
//!
//! A ring in memory, bounded in number and bytes: the oldest make room.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::{ActorName, Digest, Envelope, FailureKind, envelope::unix_millis};

/// Dead letters that are kept.
const MAX_LETTERS: usize = 10_000;

/// Bytes of messages that are kept.
const MAX_BYTES: usize = 64 << 20;

/// Why a message became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its turn failed, as often as it may.
    Failed(FailureKind),
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
    /// One word for metrics and filters.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Failed(kind) => kind.class(),
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
            Self::Removed => f.write_str("its actor was removed"),
            Self::Unwired => f.write_str("its port lost its last wire"),
            Self::NoTarget => f.write_str("its actor or port is not there"),
            Self::MaxHops => f.write_str("it made more hops than `max_hops` allows"),
            Self::Overflow => f.write_str("the mailbox was full"),
            Self::Shutdown => f.write_str("the daemon stopped"),
        }
    }
}

/// A message that could not be delivered or processed.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// Its number since the daemon started.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub time: u64,
    /// The actor that it was for.
    pub actor: ActorName,
    /// Why it is here.
    #[serde(serialize_with = "reason_text")]
    pub reason: Reason,
    /// What the actor ran.
    pub digest: Option<Digest>,
    /// How often it was tried.
    pub attempts: u32,
    /// The message.
    #[serde(serialize_with = "envelope_json")]
    pub envelope: Envelope,
}

fn reason_text<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(reason)
}

fn envelope_json<S: Serializer>(envelope: &Envelope, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Encoded<'a> {
        id: crate::MessageId,
        correlation: crate::MessageId,
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
        port: envelope.port.as_str(),
        time: envelope.time,
        hops: envelope.hops,
        message,
    }
    .serialize(serializer)
}

/// The ring of dead letters.
#[derive(Default)]
pub struct DeadLetters {
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    letters: VecDeque<DeadLetter>,
    bytes: usize,
    numbers: u64,
    /// All that ever came, by actor and class of reason.
    totals: HashMap<(ActorName, &'static str), u64>,
    /// When a dropped message of an actor was last kept.
    last_drop: HashMap<ActorName, Instant>,
}

impl DeadLetters {
    /// Keeps a message.
    pub(crate) fn put(
        &self,
        actor: &ActorName,
        envelope: &Envelope,
        reason: Reason,
        digest: Option<Digest>,
        attempts: u32,
    ) {
        let mut ring = self.ring.lock();
        *ring.totals.entry((actor.clone(), reason.class())).or_default() += 1;
        ring.numbers += 1;
        let mut envelope = envelope.clone();
        envelope.message = envelope.message.detached();
        ring.bytes += envelope.message.encoded_len();
        let letter = DeadLetter {
            number: ring.numbers,
            time: unix_millis(),
            actor: actor.clone(),
            reason,
            digest,
            attempts,
            envelope,
        };
        ring.letters.push_back(letter);
        while ring.letters.len() > MAX_LETTERS || (ring.bytes > MAX_BYTES && ring.letters.len() > 1)
        {
            if let Some(oldest) = ring.letters.pop_front() {
                ring.bytes -= oldest.envelope.message.encoded_len();
            }
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

    /// Those that are kept, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<DeadLetter> {
        self.ring.lock().letters.iter().cloned().collect()
    }

    /// How many ever came, by actor and class of reason.
    #[must_use]
    pub fn totals(&self) -> Vec<(ActorName, &'static str, u64)> {
        let ring = self.ring.lock();
        ring.totals.iter().map(|((actor, class), n)| (actor.clone(), *class, *n)).collect()
    }
}
