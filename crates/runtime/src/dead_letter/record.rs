//! One dead letter as bytes in a file.
//!
//! A record begins with a mark that no text holds, because it is no UTF-8; so
//! whoever has lost the thread in a damaged file finds the next record by looking
//! for one. A checksum over all that follows the mark says whether it is whole.
//! The mark alone says whether the letter is still kept, and is the only thing
//! that is ever written over. Everything here is pure.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{DeadLetter, Ran, Reason};
use crate::{Envelope, FailureKind, Message, Trace};

/// The length of a mark.
pub(super) const MARK: usize = 8;

/// Begins a record whose letter is kept.
pub(super) const KEPT: [u8; MARK] = *b"\xffletter\xfe";

/// Begins a record whose letter is gone: no few flipped bits make one of the other.
pub(super) const GONE: [u8; MARK] = *b"\xff\x93\x9a\x8b\x8b\x9a\x8d\xfe";

/// The first half of a SHA-256: whatever a disk or a sender does, it fits by itself or never.
pub(super) const CHECKSUM: usize = 16;

const LENGTH: usize = 4;
const NUMBER: usize = 8;

/// What stands before a letter's text: mark, length, number, checksum.
pub(super) const HEAD: usize = MARK + LENGTH + NUMBER + CHECKSUM;

/// A record that is whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) number: u64,
    /// Whether its letter has been taken away.
    pub(super) gone: bool,
    /// The letter, as JSON.
    pub(super) text: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record that `bytes` begin with, if that is whole.
    pub(super) fn at(bytes: &'a [u8]) -> Option<Self> {
        let (mark, rest) = bytes.split_first_chunk::<MARK>()?;
        let gone = match *mark {
            KEPT => false,
            GONE => true,
            _ => return None,
        };
        let (length, rest) = rest.split_first_chunk::<LENGTH>()?;
        let (number, rest) = rest.split_first_chunk::<NUMBER>()?;
        let (sum, rest) = rest.split_first_chunk::<CHECKSUM>()?;
        let text = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        let whole = checksum(&[length, number, text]) == *sum;
        whole.then(|| Self { number: u64::from_le_bytes(*number), gone, text })
    }

    /// Bytes that it takes.
    pub(super) fn len(&self) -> usize {
        HEAD + self.text.len()
    }
}

/// How long the record is that begins with this head, if it is one. It may still be damaged.
pub(super) fn length(head: &[u8; HEAD]) -> usize {
    let (_, rest) = head.split_at(MARK);
    let length = rest.first_chunk::<LENGTH>().map_or(0, |length| u32::from_le_bytes(*length));
    HEAD.saturating_add(usize::try_from(length).unwrap_or(usize::MAX))
}

/// The first half of the SHA-256 of all parts together.
pub(super) fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let whole = hash.finalize();
    std::array::from_fn(|at| whole[at])
}

/// Where the next mark of a record begins, from `from` on.
pub(super) fn next_mark(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let is_mark = |window: &[u8]| window == KEPT || window == GONE;
    rest.windows(MARK).position(is_mark).map(|at| from + at)
}

/// A letter as a record, or nothing where it is longer than a record can be.
pub(super) fn encode(letter: &DeadLetter) -> Option<Vec<u8>> {
    let text = Text::of(letter);
    let mut out = vec![0; HEAD];
    serde_json::to_writer(&mut out, &text).expect("strings and numbers can be encoded");
    let length = u32::try_from(out.len() - HEAD).ok()?.to_le_bytes();
    let number = letter.number.to_le_bytes();
    let sum = checksum(&[&length, &number, &out[HEAD..]]);
    let head: Vec<u8> = [&KEPT[..], &length, &number, &sum].concat();
    out[..HEAD].copy_from_slice(&head);
    Some(out)
}

/// The letter of a record; nothing where its text is none that this version knows.
pub(super) fn decode(record: &Record<'_>) -> Option<DeadLetter> {
    let text: Text<'_> = serde_json::from_slice(record.text).ok()?;
    text.letter(record.number)
}

/// A letter as text: all of it but its number.
#[derive(Serialize, Deserialize)]
struct Text<'a> {
    time: u64,
    actor: Cow<'a, str>,
    port: Cow<'a, str>,
    class: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    attempts: u32,
    id: String,
    correlation: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    links: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracestate: Option<Cow<'a, str>>,
    sent: u64,
    hops: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    /// The message, byte for byte.
    #[serde(borrow)]
    message: Cow<'a, RawValue>,
}

impl<'a> Text<'a> {
    fn of(letter: &'a DeadLetter) -> Self {
        let DeadLetter { number: _, time, actor, reason, ran, attempts, envelope } = letter;
        let (class, detail) = parts(reason);
        let links = envelope.links.iter().flat_map(|links| links.iter());
        let message = RawValue::from_string(envelope.message.encode());
        Self {
            time: *time,
            actor: actor.as_str().into(),
            port: envelope.port.as_str().into(),
            class: class.into(),
            detail,
            digest: ran.map(|ran| ran.digest.to_string()),
            generation: ran.map(|ran| ran.generation),
            attempts: *attempts,
            id: envelope.id.to_string(),
            correlation: envelope.correlation.to_string(),
            links: links.map(ToString::to_string).collect(),
            traceparent: envelope.traceparent(),
            tracestate: envelope.tracestate().map(Cow::from),
            sent: envelope.time,
            hops: envelope.hops,
            replayed: envelope.replayed,
            message: Cow::Owned(message.expect("a message is JSON")),
        }
    }

    fn letter(self, number: u64) -> Option<DeadLetter> {
        let links: Vec<_> =
            self.links.iter().map(|link| link.parse().ok()).collect::<Option<_>>()?;
        let ran = match (&self.digest, self.generation) {
            (Some(digest), Some(generation)) => {
                Some(Ran { digest: digest.parse().ok()?, generation })
            }
            _ => None,
        };
        let message = Bytes::copy_from_slice(self.message.get().as_bytes());
        let trace =
            self.traceparent.and_then(|parent| Trace::of_text(&parent, self.tracestate.as_deref()));
        Some(DeadLetter {
            number,
            time: self.time,
            actor: self.actor.parse().ok()?,
            reason: reason(&self.class, self.detail)?,
            ran,
            attempts: self.attempts,
            envelope: Envelope {
                id: self.id.parse().ok()?,
                correlation: self.correlation.parse().ok()?,
                links: (!links.is_empty()).then(|| links.into()),
                trace: trace.map(Arc::new),
                time: self.sent,
                hops: self.hops,
                port: self.port.parse().ok()?,
                replayed: self.replayed,
                // A letter is replayed to whoever runs then.
                judged: false,
                message: Message::kept(&message, &message).ok()?,
            },
        })
    }
}

/// A reason's class, and what makes it this one of its class.
fn parts(reason: &Reason) -> (&'static str, String) {
    let detail = match reason {
        Reason::Failed(FailureKind::Timeout(time)) => time.as_nanos().to_string(),
        Reason::Failed(
            FailureKind::Trap(text)
            | FailureKind::Turn(text)
            | FailureKind::Guest(text)
            | FailureKind::Refused(text),
        )
        | Reason::Unreadable(text) => text.clone(),
        Reason::Failed(FailureKind::Unavailable(setback) | FailureKind::Remote(setback)) => {
            setback.why.clone()
        }
        Reason::Removed
        | Reason::Unwired
        | Reason::NoTarget
        | Reason::MaxHops
        | Reason::Overflow
        | Reason::Shutdown => String::new(),
    };
    (reason.class(), detail)
}

/// The reason that has these [`parts`].
fn reason(class: &str, detail: String) -> Option<Reason> {
    Some(match class {
        "trap" => Reason::Failed(FailureKind::Trap(detail)),
        "timeout" => {
            let time = Duration::from_nanos(detail.parse().ok()?);
            Reason::Failed(FailureKind::Timeout(time))
        }
        "turn-error" => Reason::Failed(FailureKind::Turn(detail)),
        "guest-error" => Reason::Failed(FailureKind::Guest(detail)),
        "unavailable" => Reason::Failed(FailureKind::Unavailable(detail.into())),
        "remote" => Reason::Failed(FailureKind::Remote(detail.into())),
        "refused" => Reason::Failed(FailureKind::Refused(detail)),
        "unreadable" => Reason::Unreadable(detail),
        "removed" => Reason::Removed,
        "unwired" => Reason::Unwired,
        "no-target" => Reason::NoTarget,
        "max-hops" => Reason::MaxHops,
        "overflow" => Reason::Overflow,
        "shutdown" => Reason::Shutdown,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, dead_letter::tests::letter};

    #[test]
    fn every_class_of_reason_is_one_that_a_record_has() {
        for class in Reason::CLASSES {
            assert_eq!(reason(class, "1".into()).map(|reason| reason.class()), Some(class));
        }
    }

    /// What everything of a letter but its identity comes to, for comparing.
    fn shown(letter: &DeadLetter) -> String {
        format!("{letter:?}")
    }

    #[test]
    fn a_letter_comes_back_as_it_was_whatever_its_reason() {
        let text = "it \"broke\"\n\u{202e}".to_owned();
        let reasons = [
            Reason::Failed(FailureKind::Trap(text.clone())),
            Reason::Failed(FailureKind::Timeout(Duration::new(1, 234_567_891))),
            Reason::Failed(FailureKind::Turn(text.clone())),
            Reason::Failed(FailureKind::Guest(String::new())),
            Reason::Failed(FailureKind::Unavailable(text.clone().into())),
            Reason::Failed(FailureKind::Remote(text.clone().into())),
            Reason::Failed(FailureKind::Refused(text.clone())),
            Reason::Unreadable(text),
            Reason::Removed,
            Reason::Unwired,
            Reason::NoTarget,
            Reason::MaxHops,
            Reason::Overflow,
            Reason::Shutdown,
        ];
        assert_eq!(reasons.len(), Reason::CLASSES.len());
        for (at, reason) in reasons.into_iter().enumerate() {
            assert!(Reason::CLASSES.contains(&reason.class()), "{reason:?}");
            let mut written = letter(7, r#"{"b":1.0, "a":1e2,"t":"\u00e9\n"}"#);
            written.reason = reason;
            if at.is_multiple_of(2) {
                written.ran = Some(Ran { digest: Digest::new([9; 32]), generation: 3 });
                written.envelope.links = Some([written.envelope.id].into());
                let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
                written.envelope.trace = Trace::of_text(parent, Some("a=1")).map(Arc::new);
                written.envelope.replayed = true;
            }
            let bytes = encode(&written).unwrap();
            let record = Record::at(&bytes).unwrap();
            assert_eq!((record.number, record.gone, record.len()), (7, false, bytes.len()));
            assert_eq!(shown(&decode(&record).unwrap()), shown(&written));
        }
    }

    #[test]
    fn a_letter_that_an_earlier_version_took_is_read_whatever_its_data() {
        let kept = Bytes::from_static(br#"{"type":"Any","data":[1e400,"\ud800"]}"#);
        let mut written = letter(7, "1");
        written.envelope.message = Message::kept(&kept, &kept).unwrap();
        let bytes = encode(&written).unwrap();
        let read = decode(&Record::at(&bytes).unwrap()).unwrap();
        assert_eq!(read.envelope.message, written.envelope.message);
    }

    #[test]
    fn no_bit_of_a_record_can_change_unseen() {
        let bytes = encode(&letter(1, "5")).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::at(&bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn a_message_cannot_hold_a_mark() {
        let inner = encode(&letter(1, "5")).unwrap();
        let text = String::from_utf8_lossy(&inner);
        let data = serde_json::to_string(&*text).unwrap();
        let outer = encode(&letter(2, &data)).unwrap();
        assert_eq!(next_mark(&outer, 1), None);
    }
}
