//! Turns as spans of a trace, for whoever collects them.
//!
//! A message that enters with a W3C trace context keeps it. Where spans are collected,
//! each turn is one: its outputs, and the requests that its guest makes, carry the turn's
//! own context on, and a message that came without any begins a trace under its
//! correlation id. Where none are collected, a context passes through as it came.

use std::{
    cell::Cell,
    fmt,
    hash::{BuildHasher, Hasher},
    str::FromStr,
    sync::Arc,
};

use thiserror::Error;

use crate::{ActorName, MessageId, envelope::Lineage};

/// Takes spans of turns that have ended.
pub trait SpanSink: Send + Sync {
    /// Whether a trace that begins here is collected.
    fn samples(&self, trace: u128) -> bool;

    /// Takes one span. Never waits: what it cannot take it counts.
    fn take(&self, span: TurnSpan);

    /// What has become of the spans so far: a word for each fate, and how many had it.
    fn counts(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// One turn in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnSpan {
    /// The trace and this turn in it.
    pub context: TraceContext,
    /// The span that led to it, unless the trace began with it.
    pub parent: Option<u64>,
    /// The actor that took the turn.
    pub actor: ActorName,
    /// What the actor ran.
    pub generation: u64,
    /// The message that it took; the first of a join.
    pub message: MessageId,
    /// Nanoseconds since the Unix epoch at which the turn began.
    pub began: u64,
    /// Nanoseconds since the Unix epoch at which it ended.
    pub ended: u64,
    /// How it failed, where it did: one word, and the error.
    pub failure: Option<(&'static str, String)>,
}

/// A W3C trace context: which trace, which span of it, and whether it is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: u128,
    /// The span.
    pub span: u64,
    /// Whether whoever began the trace collects it.
    pub sampled: bool,
}

/// Not a W3C trace context.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` is no trace context: 00, 32 hexadecimal digits, 16 and 2, with `-` between, none of the first two all zero"
)]
pub struct TraceContextError(String);

impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let error = || TraceContextError(text.chars().take(80).collect());
        let lower = |part: &&str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = text.split('-');
        let mut part = |digits| parts.next().filter(|p| p.len() == digits).filter(lower);
        let (version, trace, span, flags) = (part(2), part(32), part(16), part(2));
        // A later version may have more after these, and this one may not.
        let more = parts.next().is_some();
        let (Some(version), Some(trace), Some(span), Some(flags)) = (version, trace, span, flags)
        else {
            return Err(error());
        };
        if version == "ff" || (version == "00" && more) {
            return Err(error());
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| error())?;
        let span = u64::from_str_radix(span, 16).map_err(|_| error())?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| error())?;
        if trace == 0 || span == 0 {
            return Err(error());
        }
        Ok(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// A turn that is a span, from its beginning.
pub(crate) struct Spanned {
    pub(crate) context: TraceContext,
    pub(crate) parent: Option<u64>,
}

impl Spanned {
    /// The span of a turn that takes what `lineage` tells of, if its trace is collected.
    pub(crate) fn begin(sink: &dyn SpanSink, lineage: &Lineage) -> Option<Self> {
        let parent = lineage.traceparent.as_deref().and_then(|text| text.parse().ok());
        let (trace, parent) = match parent {
            Some(TraceContext { sampled: false, .. }) => return None,
            Some(TraceContext { trace, span, .. }) => (trace, Some(span)),
            None => (lineage.correlation.as_u128(), None),
        };
        if parent.is_none() && !sink.samples(trace) {
            return None;
        }
        Some(Self { context: TraceContext { trace, span: fresh(), sampled: true }, parent })
    }

    /// What the turn's outputs carry on.
    pub(crate) fn traceparent(&self) -> Arc<str> {
        self.context.to_string().into()
    }
}

/// A span's number, as good as unique.
fn fresh() -> u64 {
    thread_local! {
        /// The standard library seeds its hashers from the system's random numbers.
        static NEXT: Cell<u64> =
            Cell::new(std::collections::hash_map::RandomState::new().build_hasher().finish());
    }
    NEXT.with(|next| {
        // Weyl's sequence, mixed: it runs through all numbers before one comes again.
        let state = next.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        next.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).max(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, good: bool) {
        assert_eq!(text.parse::<TraceContext>().is_ok(), good, "{text}");
    }

    #[test]
    fn a_context_is_taken_only_well_formed() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        check(good, true);
        assert_eq!(good.parse::<TraceContext>().unwrap().to_string(), good);
        check(&good.to_uppercase(), false);
        check(&good[1..], false);
        check(&format!("{good}-more"), false);
        check(&format!("01{}-more", &good[2..]), true);
        check(&format!("ff{}", &good[2..]), false);
        check("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false);
        check("00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01", false);
        check("", false);
    }

    /// Collects every trace, or none that begins here.
    struct Sink(bool);

    impl SpanSink for Sink {
        fn samples(&self, _: u128) -> bool {
            self.0
        }

        fn take(&self, _: TurnSpan) {}
    }

    fn lineage(traceparent: Option<&str>) -> Lineage {
        let correlation = MessageId::new();
        Lineage { correlation, links: None, traceparent: traceparent.map(Arc::from), hops: 0 }
    }

    #[test]
    fn a_turn_follows_on_the_context_of_its_message() {
        let came = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let turn = Spanned::begin(&Sink(false), &lineage(Some(came))).unwrap();
        assert_eq!(turn.parent, Some(0x00f0_67aa_0ba9_02b7));
        assert_eq!(turn.traceparent()[..36], came[..36]);
        assert_ne!(turn.traceparent()[36..52], came[36..52]);
    }

    #[test]
    fn a_message_without_context_begins_a_trace_under_its_correlation() {
        let lineage = lineage(None);
        let turn = Spanned::begin(&Sink(true), &lineage).unwrap();
        assert_eq!((turn.parent, turn.context.trace), (None, lineage.correlation.as_u128()));
        assert!(turn.traceparent().contains(&lineage.correlation.to_string()));
        assert!(Spanned::begin(&Sink(false), &lineage).is_none());
    }

    #[test]
    fn what_others_do_not_collect_is_not_collected_here() {
        let came = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        assert!(Spanned::begin(&Sink(true), &lineage(Some(came))).is_none());
    }
}
