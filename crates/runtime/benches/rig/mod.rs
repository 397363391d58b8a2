//! Three actors in a row whose engines cost nothing, and how long messages take through them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use reflowd_runtime::{
    ActorLog, ActorState, Change, Context, Digest, Effects, Engine, InstantiateError, Message,
    Metadata, Port, PortName, PortRef, Program, Ready, Settings, SpanSink, Start, System, Turn,
    Type, WireDef,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::{sync::Notify, time::Instant};

/// Messages that wait for the first actor when the clock starts.
const LOAD: u64 = 20_000;

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

/// Three actors in a row: `a`, `b` and `sink`.
pub(crate) struct Chain {
    pub(crate) system: System,
    seen: Arc<Seen>,
    to: PortRef,
    message: Message,
}

impl Chain {
    pub(crate) async fn new(spans: Option<Arc<dyn SpanSink>>) -> Self {
        let system = System::traced(tokio::runtime::Handle::current(), spans);
        let seen = Arc::new(Seen::default());
        let mut start = Vec::new();
        for (name, seen) in [("a", None), ("b", None), ("sink", Some(Arc::clone(&seen)))] {
            let program = Arc::new(nothing(seen));
            let engine = program.instantiate().await.expect("it cannot fail");
            let (module, name) = (name.into(), name.parse().expect("a name"));
            let log = ActorLog::new("log".parse().expect("a name"), 100);
            let ready = Ready::Engine { program, engine, version: None, log, module };
            let mailbox = usize::try_from(LOAD).expect("it is small");
            let settings = Settings { mailbox, ..Settings::default() };
            start.push(Start { name, ready, settings, state: None, was: None });
        }
        let wire = |from: &str, to: &str| WireDef {
            from: from.parse().expect("a port"),
            to: to.parse().expect("a port"),
            overflow: None,
        };
        let connect = vec![wire("a.out", "b.in"), wire("b.out", "sink.in")];
        system.apply(Change { start, connect, ..Change::default() }).await;
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

    /// What `messages` messages take of the processors.
    pub(crate) async fn measure(&self, messages: u64) -> Duration {
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
