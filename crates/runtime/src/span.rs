//! Spans of turns and of the requests that they make, for a collector of traces.
//!
//! Where spans are collected, each turn is one: its outputs, and the requests that its guest
//! makes, carry the turn's own context on, and a message that came without any begins a trace
//! under its correlation id. Where none are collected, a context passes through as it came.

use std::{
    cell::Cell,
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use crate::{
    ActorName, MessageId, Secrets, Trace, TraceContext, TraceFlags,
    envelope::{Lineage, Moment},
};

/// Takes spans that have ended.
pub trait SpanSink: Send + Sync {
    /// Whether a trace is collected: one that begins here, or one whose caller says whether it
    /// collects it.
    fn samples(&self, trace: u128, caller: Option<TraceFlags>) -> bool;

    /// Takes one span. Never waits: what it cannot take it counts.
    fn take(&self, span: Span);

    /// The spans so far, counted by their fate.
    fn counts(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// A turn or a request, in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The trace and this span in it.
    pub context: TraceContext,
    /// The vendors' part of the trace.
    pub state: Option<Box<str>>,
    /// The span that led to it, unless the trace began with it.
    pub parent: Option<u64>,
    /// The actor that took the turn.
    pub actor: ActorName,
    /// What the actor ran.
    pub generation: u64,
    /// The subject of the span.
    pub what: Spanning,
    /// Nanoseconds since the Unix epoch at which it began.
    pub began: u64,
    /// Nanoseconds since the Unix epoch at which it ended.
    pub ended: u64,
    /// The failure, if any: one word, and the error.
    pub failure: Option<(&'static str, String)>,
}

/// The subject of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spanning {
    /// A turn with this message; the first of a join.
    Turn {
        /// The message.
        message: MessageId,
    },
    /// A request to an HTTP server.
    Request(HttpRequest),
}

/// A request as a span tells of it, with secrets masked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRequest {
    /// `GET`, `POST` …
    pub method: String,
    /// The URL without user, password and query, which may be secret.
    pub url: String,
    /// The server's name or address.
    pub host: String,
    /// The server's port, where it is known.
    pub port: Option<u16>,
    /// The status of the answer, if one came.
    pub status: Option<u16>,
}

impl HttpRequest {
    /// A request to a URL that is on its way.
    #[must_use]
    pub fn of(method: &str, url: &str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        // The colons of an IPv6 address are within brackets.
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
            _ => (place, None),
        };
        let usual = match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        Self {
            method: method.into(),
            url: format!("{scheme}://{place}{path}"),
            host: host.trim_matches(['[', ']']).into(),
            port: port.or(usual),
            status: None,
        }
    }
}

/// The trace of a turn, as its outputs and requests carry it on.
#[derive(Clone)]
pub struct TurnTrace {
    trace: Arc<Trace>,
    /// The sink for spans of requests; `None` if the trace is not collected here.
    collects: Option<Arc<Collects>>,
}

/// The common part of the spans of a turn's requests.
pub(crate) struct Collects {
    pub(crate) sink: Arc<dyn SpanSink>,
    pub(crate) actor: ActorName,
    pub(crate) generation: u64,
    pub(crate) secrets: Secrets,
}

impl TurnTrace {
    pub(crate) fn new(trace: Arc<Trace>, collects: Option<Collects>) -> Self {
        Self { trace, collects: collects.map(Arc::new) }
    }

    /// A trace that passes through: no span is made of its requests.
    #[must_use]
    pub fn passing(trace: Trace) -> Self {
        Self::new(Arc::new(trace), None)
    }

    /// Begins a request: a span of its own, where the trace is collected.
    #[must_use]
    pub fn request(&self) -> RequestSpan {
        let trace = match &self.collects {
            Some(_) => self.trace.onward(fresh()),
            None => (*self.trace).clone(),
        };
        RequestSpan { turn: self.clone(), trace, began: Moment::now().unix_nanos() }
    }
}

/// A request that is on its way. Its headers are `traceparent` and, if there is one, `tracestate`.
pub struct RequestSpan {
    turn: TurnTrace,
    trace: Trace,
    began: u64,
}

impl RequestSpan {
    /// The value of `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> String {
        self.trace.context.to_string()
    }

    /// The value of `tracestate`, if there is one.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.trace.state.as_deref()
    }

    /// The request has ended, with an answer or an error: one word, and what went wrong. As
    /// OpenTelemetry has it, an answer of 400 or above is a failure of its client.
    pub fn end(self, request: HttpRequest, failure: Option<(&'static str, String)>) {
        let Some(collects) = &self.turn.collects else { return };
        let mask = |text: &str| collects.secrets.mask(text).into_owned();
        let failed = request.status.filter(|status| *status >= 400);
        let failure = failure.map(|(class, why)| (class, mask(&why))).or_else(|| {
            failed.map(|status| ("http-status", format!("the server answered {status}")))
        });
        collects.sink.take(Span {
            context: self.trace.context,
            state: self.trace.state,
            parent: Some(self.turn.trace.context.span),
            actor: collects.actor.clone(),
            generation: collects.generation,
            what: Spanning::Request(HttpRequest {
                url: mask(&request.url),
                host: mask(&request.host),
                ..request
            }),
            began: self.began,
            ended: Moment::now().unix_nanos(),
            failure,
        });
    }
}

/// A turn that is a span, from its beginning.
pub(crate) struct Spanned {
    /// The trace that the turn's outputs and requests carry on.
    pub(crate) onward: Arc<Trace>,
    pub(crate) parent: Option<u64>,
}

impl Spanned {
    /// The span of a turn that takes what `lineage` tells of, if its trace is collected.
    pub(crate) fn begin(sink: &dyn SpanSink, lineage: &Lineage) -> Option<Self> {
        let came = lineage.trace.as_deref();
        let parent = came.map(|trace| trace.context);
        let trace = parent.map_or(lineage.correlation.as_u128(), |context| context.trace);
        if !sink.samples(trace, parent.map(|context| context.flags)) {
            return None;
        }
        let flags = parent.map(|context| context.flags).unwrap_or_default().collected();
        let context = TraceContext { trace, span: fresh(), flags };
        let state = came.and_then(|trace| trace.state.clone());
        let onward = Arc::new(Trace { context, state });
        Some(Self { onward, parent: parent.map(|context| context.span) })
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

    /// Collects what its caller collects; what begins here, if it says so.
    struct Sink(bool);

    impl SpanSink for Sink {
        fn samples(&self, _: u128, caller: Option<TraceFlags>) -> bool {
            caller.map_or(self.0, TraceFlags::sampled)
        }

        fn take(&self, _: Span) {}
    }

    const CAME: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0";

    fn lineage(came: Option<&str>) -> Lineage {
        let correlation = MessageId::new();
        let trace = came.map(|came| Arc::new(Trace::of_text(came, Some("a=1")).unwrap()));
        Lineage { correlation, links: None, trace, hops: 0 }
    }

    #[test]
    fn a_request_is_told_without_what_may_be_secret() {
        for (url, told, host, port) in [
            ("http://a.example", "http://a.example", "a.example", 80),
            ("https://u:p@ss@a.example/x/y?key=hush#z", "https://a.example/x/y", "a.example", 443),
            ("http://127.0.0.1:8080?q", "http://127.0.0.1:8080", "127.0.0.1", 8080),
            ("http://[::1]:81/x", "http://[::1]:81/x", "::1", 81),
            ("http://[::1]/x", "http://[::1]/x", "::1", 80),
        ] {
            let request = HttpRequest::of("GET", url);
            let found = (request.url.as_str(), request.host.as_str(), request.port);
            assert_eq!(found, (told, host, Some(port)), "{url}");
        }
    }

    #[test]
    fn a_turn_follows_on_the_context_of_its_message() {
        let lineage = lineage(Some(&format!("{CAME}3")));
        let turn = Spanned::begin(&Sink(false), &lineage).unwrap();
        assert_eq!(turn.parent, Some(0x00f0_67aa_0ba9_02b7));
        let text = turn.onward.context.to_string();
        assert_eq!((&text[..36], &text[52..]), (&CAME[..36], "-03"));
        assert_ne!(text[36..52], CAME[36..52]);
        assert_eq!(turn.onward.state.as_deref(), Some("a=1"));
    }

    #[test]
    fn a_message_without_context_begins_a_trace_under_its_correlation() {
        let lineage = lineage(None);
        let turn = Spanned::begin(&Sink(true), &lineage).unwrap();
        assert_eq!((turn.parent, turn.onward.context.trace), (None, lineage.correlation.as_u128()));
        let onward = turn.onward.context.to_string();
        // Its number counts up, so it must not be declared random.
        assert!(onward.contains(&lineage.correlation.to_string()) && onward.ends_with("-01"));
        assert!(Spanned::begin(&Sink(false), &lineage).is_none());
    }

    #[test]
    fn what_others_do_not_collect_is_not_collected_here() {
        assert!(Spanned::begin(&Sink(true), &lineage(Some(&format!("{CAME}0")))).is_none());
    }
}
