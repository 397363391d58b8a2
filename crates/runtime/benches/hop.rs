//! What the runtime adds to a turn: two actors and a sink whose engines cost
//! nothing, fed from a full mailbox.
//!
//! One iteration is one message through all three, which is three turns and two
//! wires. Only the way is measured: the first actor is paused while its mailbox
//! is filled, and the clock runs from its release to the sink's last turn. The
//! clock is the processor's and counts all threads, so that whatever else the
//! machine does is not in the figures.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::BoxFuture;
use reflowd_runtime::{
    ActorLog, ActorState, Change, Context, Digest, Effects, Engine, InstantiateError, Message,
    Metadata, Port, PortName, PortRef, Program, Ready, Settings, SpanSink, Start, System, Turn,
    TurnSpan, Type, WireDef,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    runtime::{Builder, Runtime},
    sync::Notify,
    time::Instant,
};

/// Messages that wait for the first actor when the clock starts.
const LOAD: u64 = 20_000;

/// Turns that one message leads to.
const TURNS: u64 = 3;

/// What the sink has seen, and who waits for it to have seen enough.
#[derive(Default)]
struct Seen {
    count: AtomicU64,
    goal: AtomicU64,
    reached: Notify,
}

impl Seen {
    fn one_more(&self) {
        if self.count.fetch_add(1, Ordering::AcqRel) + 1 == self.goal.load(Ordering::Acquire) {
            self.reached.notify_one();
        }
    }
}

/// A program whose engines put out what comes in, or count it where they are the last.
struct Nothing {
    metadata: Metadata,
    out: PortName,
    seen: Option<Arc<Seen>>,
}

struct NothingEngine {
    out: PortName,
    seen: Option<Arc<Seen>>,
}

impl Program for Nothing {
    fn digest(&self) -> Digest {
        Digest::new([0; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        let engine = NothingEngine { out: self.out.clone(), seen: self.seen.clone() };
        Box::pin(async move { Ok(Box::new(engine) as Box<dyn Engine>) })
    }
}

impl Engine for NothingEngine {
    fn turn(self: Box<Self>, context: Context, _deadline: Instant) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            let mut effects = Effects::default();
            match &self.seen {
                Some(seen) => seen.one_more(),
                None => {
                    let (_, message) = context.payload.into_iter().next().expect("one message");
                    effects.outputs.push((self.out.clone(), message));
                }
            }
            Ok((self as Box<dyn Engine>, effects))
        })
    }
}

fn nothing(seen: Option<Arc<Seen>>) -> Nothing {
    let port = |name: &str| Port {
        name: name.parse().expect("a name"),
        description: String::new(),
        port_type: Type::Any,
        required: false,
    };
    let metadata = Metadata {
        component: "Nothing".into(),
        description: String::new(),
        inports: vec![port("in")],
        outports: vec![port("out")],
        config_schema: None,
        version: None,
    };
    Nothing { out: metadata.outports[0].name.clone(), metadata, seen }
}

/// Takes the spans of a share of all traces, of which it throws each away: what is
/// measured is what a turn pays.
struct Share {
    percent: u128,
    taken: AtomicU64,
}

impl SpanSink for Share {
    fn samples(&self, trace: u128) -> bool {
        trace % 100 < self.percent
    }

    fn take(&self, span: TurnSpan) {
        drop(span);
        self.taken.fetch_add(1, Ordering::Relaxed);
    }
}

/// Three actors in a row.
struct Chain {
    system: System,
    seen: Arc<Seen>,
    to: PortRef,
    message: Message,
}

impl Chain {
    async fn new(spans: Option<Arc<dyn SpanSink>>) -> Self {
        let system = System::traced(tokio::runtime::Handle::current(), spans);
        let seen = Arc::new(Seen::default());
        let mut start = Vec::new();
        for (name, seen) in [("a", None), ("b", None), ("sink", Some(Arc::clone(&seen)))] {
            let program = Arc::new(nothing(seen));
            let engine = program.instantiate().await.expect("it cannot fail");
            let name = name.parse().expect("a name");
            let log = ActorLog::new("log".parse().expect("a name"), 100);
            let ready = Ready::Engine { program, engine, version: None, log };
            let mailbox = usize::try_from(LOAD).expect("it is small");
            let settings = Settings { mailbox, ..Settings::default() };
            start.push(Start { name, ready, settings, state: None, was: None });
        }
        let wire = |from: &str, to: &str| WireDef {
            from: from.parse().expect("a port"),
            to: to.parse().expect("a port"),
            overflow: None,
        };
        let wires = Some(vec![wire("a.out", "b.in"), wire("b.out", "sink.in")]);
        system.apply(Change { start, wires, ..Change::default() }).await;
        let data = format!("{{\"text\":\"{}\"}}", "x".repeat(88));
        let message = Message::new(Type::Object, data).expect("it is an object");
        Self { system, seen, to: "a.in".parse().expect("a port"), message }
    }

    /// How long `n` messages take from the first mailbox to the sink.
    async fn run(&self, n: u64) -> Duration {
        let first = self.system.actor("a").expect("it was started");
        let mut status = first.watch();
        first.pause().await;
        status.wait_for(|s| s.state == ActorState::Paused).await.expect("it is there");
        let goal = self.seen.count.load(Ordering::Acquire) + n;
        self.seen.goal.store(goal, Ordering::Release);
        for _ in 0..n {
            self.system.send(&self.to, self.message.clone(), None).expect("there is room");
        }
        let began = processor_time();
        first.resume().await;
        self.seen.reached.notified().await;
        processor_time() - began
    }

    async fn measure(&self, messages: u64) -> Duration {
        let mut all = Duration::ZERO;
        let mut left = messages;
        while left > 0 {
            let n = left.min(LOAD);
            all += self.run(n).await;
            left -= n;
        }
        all
    }
}

/// What all threads of the process have used of the processors.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("it is not negative")
}

fn bench(criterion: &mut Criterion, name: &str, runtime: &Runtime, percent: Option<u128>) {
    let mut group = criterion.benchmark_group("hop");
    group.throughput(Throughput::Elements(TURNS));
    let share = percent.map(|percent| Share { percent, taken: AtomicU64::new(0) });
    let spans = share.map(|share| Arc::new(share) as Arc<dyn SpanSink>);
    let chain = runtime.block_on(Chain::new(spans));
    group.bench_function(name, |b| {
        b.iter_custom(|messages| runtime.block_on(chain.measure(messages)));
    });
    group.finish();
    let books = chain.system.books();
    assert!(books.balanced(), "{books:?}");
    runtime.block_on(chain.system.kill());
}

fn hops(criterion: &mut Criterion) {
    let one = Builder::new_current_thread().enable_all().build().expect("a runtime");
    bench(criterion, "one-thread", &one, None);
    bench(criterion, "one-thread, 1 % of traces collected", &one, Some(1));
    bench(criterion, "one-thread, all traces collected", &one, Some(100));
    let two = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    bench(criterion, "two-workers", &two.expect("a runtime"), None);
}

criterion_group!(benches, hops);
criterion_main!(benches);
