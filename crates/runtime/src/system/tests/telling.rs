//! What is told of turns: spans, and errors without secrets.

use super::*;
use crate::{HttpRequest, Span, SpanSink, Spanning, Trace, TraceContext, TraceFlags};

/// Collects everything.
#[derive(Default)]
struct Collector(Mutex<Vec<Span>>);

impl SpanSink for Collector {
    fn samples(&self, _: u128, _: Option<TraceFlags>) -> bool {
        true
    }

    fn take(&self, span: Span) {
        self.0.lock().push(span);
    }
}

fn came() -> Option<Arc<Trace>> {
    Trace::of_text(CAME, Some("a=1,b=2")).map(Arc::new)
}

const CAME: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Two actors in a row, of which the first fails on `bad`.
async fn pair(collector: Option<&Arc<Collector>>) -> Rig {
    let spans = collector.map(|collector| Arc::clone(collector) as Arc<dyn SpanSink>);
    let mut rig = Rig::of(System::traced(Handle::current(), spans)).await;
    let first = fake(1, |context| match text(&context.payload[0].1) {
        bad if bad == "bad" => Err(FailureKind::Guest("no: hush-1".into())),
        _ => {
            let request = context.trace.as_ref().unwrap().request();
            let said = format!("{} {}", request.traceparent(), request.tracestate().unwrap());
            let status = Some(503);
            let url = "http://hush-1.example/".into();
            request.end(HttpRequest { status, url, ..HttpRequest::default() }, None);
            Ok(out(&said))
        }
    });
    rig.start("b", marker(2, ""), Settings::default(), &["sink"]).await;
    rig.start("a", first, Settings::default(), &["b"]).await;
    rig
}

#[tokio::test(start_paused = true)]
async fn each_turn_is_a_span_that_follows_on_the_one_before() {
    let collector = Arc::new(Collector::default());
    let mut rig = pair(Some(&collector)).await;
    rig.system.send(&"a.in".parse().unwrap(), string("x"), came()).unwrap();
    let seen = rig.seen(1).await;
    rig.quiet().await;
    let came: TraceContext = CAME.parse().unwrap();
    let spans = collector.0.lock().clone();
    let (requests, spans): (Vec<Span>, Vec<Span>) =
        spans.into_iter().partition(|span| matches!(span.what, Spanning::Request(_)));
    let names: Vec<_> = spans.iter().map(|span| span.actor.as_str()).collect();
    assert_eq!(names, ["a", "b", "sink"]);
    assert!(spans.iter().all(|span| span.context.trace == came.trace));
    assert_eq!(spans[0].parent, Some(came.span));
    assert_eq!(spans[1].parent, Some(spans[0].context.span));
    assert_eq!(spans[2].parent, Some(spans[1].context.span));
    assert!(spans.iter().all(|span| span.began <= span.ended && span.failure.is_none()));
    assert!(spans.iter().all(|span| span.state.as_deref() == Some("a=1,b=2")));
    let Spanning::Turn { .. } = spans[0].what else { panic!("{spans:?}") };
    // What a turn asks of others is a span of its own, in the turn's.
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(seen, [format!("{} a=1,b=2", request.context)]);
    assert_eq!((request.context.trace, request.parent), (came.trace, Some(spans[0].context.span)));
    assert!(request.began <= request.ended);
    let why = "the server answered 503".to_owned();
    assert_eq!(request.failure, Some(("http-status", why)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_turn_is_a_span_with_its_error() {
    let collector = Arc::new(Collector::default());
    let rig = pair(Some(&collector)).await;
    rig.system.secrets().add(["hush-1"]);
    rig.send("a.in", "bad");
    rig.quiet().await;
    let failure = collector.0.lock()[0].failure.clone().unwrap();
    assert_eq!(failure, ("guest-error", "the guest returned an error: no: ***".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_trace_passes_through_where_none_is_collected() {
    let mut rig = pair(None).await;
    rig.system.send(&"a.in".parse().unwrap(), string("x"), came()).unwrap();
    assert_eq!(rig.seen(1).await, [format!("{CAME} a=1,b=2")]);
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn no_error_shows_a_secret() {
    let rig = pair(None).await;
    rig.system.secrets().add(["hush-1"]);
    rig.send("a.in", "bad");
    rig.quiet().await;
    let letters = rig.system.dead_letters().list();
    assert_eq!(letters.len(), 1);
    let shown = format!("{letters:?} {:?}", rig.system.events().since(0).0);
    assert!(shown.contains("no: ***") && !shown.contains("hush-1"), "{shown}");
}
