//! How long quick actors wait beside actors that never end their turns.
//!
//! Twenty actors are sent a message each every five milliseconds. Beside them spin
//! none, two or twenty actors to their deadline of a second, at every turn. The
//! time runs from sending a message until what came of it is in the hands of the
//! next actor; so it holds the wait in the mailbox, the turn, its commit and the
//! way over a wire. How late the sender's own timer wakes is no part of it.
//!
//! Beside them work, in further rows, actors that have the host work: they ask for one
//! key of a large state, are given all of it with each message, or log more than anybody
//! reads, turn after turn.
//!
//! What the quick ones get done where work always waits is measured too: each has
//! a wire to itself on which messages go round.

#[path = "rig/goal.rs"]
mod goal;
#[path = "rig/guest.rs"]
mod guest;
#[path = "rig/native.rs"]
mod native;
#[path = "rig/written.rs"]
mod written;

use std::{
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use reflowd_loader::{EngineKind, Limits, LoadedModule, Loader};
use reflowd_runtime::{
    Actor, Change, EnginePer, Message, PortRef, Settings, State, System, Type, WireDef,
};
use tokio::{
    runtime::{Builder, Runtime},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    goal::Goal,
    guest::{actor, file, prepare},
    native::Native,
};

/// Actors that are quick.
const QUICK: usize = 20;

/// The sender wakes each millisecond, and serves a fifth of them.
const SHARES: usize = 5;

/// Messages that go round at each quick actor.
const ROUND: usize = 64;

/// Actors that have the host work, and bytes of their state and of what they log.
const BUSY: usize = 6;
const STATE: usize = 16_000_000;
const LOGGED: usize = 90_000_000;

/// What a turn may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// How long latencies are taken, and throughput each time.
const WATCHED: Duration = Duration::from_secs(6);
const SATURATED: Duration = Duration::from_secs(2);

/// Rounds of throughput, without and with spinners.
const ROUNDS: usize = 5;

fn main() {
    let whole = std::env::args().any(|arg| arg == "--bench");
    let (watched, saturated, rounds) = if whole {
        (WATCHED, SATURATED, ROUNDS)
    } else {
        (Duration::from_millis(200), Duration::from_millis(200), 1)
    };
    let modules = Modules::load();
    print(&modules, watched);
    let mut ratios: Vec<f64> = (0..rounds)
        .map(|_| {
            let alone = Rig::new(&modules, Beside::Spinners(0), true).throughput(saturated);
            Rig::new(&modules, Beside::Spinners(2), true).throughput(saturated) / alone
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let what = "beside 2 spinners: share of the undisturbed throughput";
    Goal::AtLeast(0.5).hold(what, ratios[ratios.len() / 2], "");
}

#[expect(clippy::print_stdout, reason = "a benchmark's table is what it is run for")]
fn print(modules: &Modules, watched: Duration) {
    println!(
        "\n{:20} {:>10} {:>10} {:>10} {:>10}",
        "beside", "turns", "p50 µs", "p99 µs", "max µs"
    );
    let mut p99 = Vec::new();
    for beside in [
        Beside::Spinners(0),
        Beside::Spinners(2),
        Beside::Spinners(20),
        Beside::Readers,
        Beside::Given,
        Beside::Loggers,
    ] {
        let mut waits = Rig::new(modules, beside, false).waits(watched);
        waits.sort();
        let micros = |percent: usize| {
            let at = (waits.len() * percent).div_ceil(100).max(1) - 1;
            waits[at].as_secs_f64() * 1e6
        };
        p99.push(micros(99));
        let (half, most, all) = (micros(50), micros(99), micros(100));
        println!("{:<20} {:>10} {half:>10.0} {most:>10.0} {all:>10.0}", beside.name(), waits.len());
    }
    for (who, p99, bound) in [
        ("2 spinners", p99[1], 1.0),
        ("20 spinners", p99[2], 10.0),
        ("6 that read a key of 16 MB of state", p99[3], 2.0),
        ("6 that are given 16 MB of state", p99[4], 2.0),
        ("6 that log 90 MB", p99[5], 2.0),
    ] {
        let what = format!("beside {who}: p99 of the other actors' turns");
        Goal::Below(bound).hold(&what, p99 / 1e3, " ms");
    }
}

/// Who works beside the quick actors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// So many that come to their deadline at every turn.
    Spinners(usize),
    /// Those that ask for one key of a large state.
    Readers,
    /// Those that are given a large state with each message.
    Given,
    /// Those that log more than anybody reads.
    Loggers,
}

impl Beside {
    fn name(self) -> String {
        match self {
            Self::Spinners(count) => format!("{count} spinners"),
            Self::Readers => format!("{BUSY} readers"),
            Self::Given => format!("{BUSY} given state"),
            Self::Loggers => format!("{BUSY} loggers"),
        }
    }

    fn count(self) -> usize {
        match self {
            Self::Spinners(count) => count,
            _ => BUSY,
        }
    }

    /// Whether its actors put out what starts their next turn.
    fn goes_round(self) -> bool {
        !matches!(self, Self::Spinners(_))
    }

    fn state(self) -> State {
        let text = match self {
            Self::Readers | Self::Given => {
                let entry = |n: usize| format!(r#""key-{n:06}":"{}""#, "x".repeat(80));
                let entries: Vec<_> = (0..STATE / 96).map(entry).collect();
                format!(r#"{{"k":1,{}}}"#, entries.join(","))
            }
            _ => r#"{"turns":1}"#.into(),
        };
        State::new(text).expect("it is an object")
    }
}

struct Modules {
    control: Runtime,
    quick: Arc<LoadedModule>,
    spinner: Arc<LoadedModule>,
    reader: Arc<LoadedModule>,
    given: Arc<LoadedModule>,
    logger: Arc<LoadedModule>,
}

impl Modules {
    fn load() -> Self {
        let control = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let control = control.expect("a runtime can be started");
        let loader = Loader::new(Limits::default()).with_engine(EngineKind::Direct);
        let spins = written::written("(loop $again (br $again)) (i32.const 0)");
        let again = "(call $answer (i32.const 512) (i32.const 38)) (i32.const 0)";
        let given = written::written(again);
        let reads = written::written(&format!(
            r#"(local $key i64)
            (local.set $key (call $alloc (i64.const 1)))
            (call $store (local.get $key) (i64.const 107))
            (drop (call $get_state (local.get $key))) {again}"#
        ));
        let logs =
            written::written(&format!("(call $log (call $alloc (i64.const {LOGGED}))) {again}"));
        let guests = [
            ("quick", file("tests/guests/json.wasm")),
            ("spinner", spins),
            ("reader", reads),
            ("given", given),
            ("logger", logs),
        ];
        let [quick, spinner, reader, given, logger] = guests.map(|(name, bytes)| {
            control.block_on(loader.load_bytes(name, bytes)).expect("the guest loads")
        });
        Self { control, quick, spinner, reader, given, logger }
    }
}

/// A system with as many threads for turns as the daemon has.
struct Rig<'a> {
    system: System,
    control: &'a Runtime,
    quick: Vec<Arc<Actor>>,
    spinners: Vec<Arc<Actor>>,
    waits: Arc<Mutex<Vec<Duration>>>,
    origin: Instant,
    turns: Option<Runtime>,
}

impl<'a> Rig<'a> {
    /// A system beside whose quick actors those work. `round` gives quick actors wires to themselves,
    /// and work.
    fn new(modules: &'a Modules, beside: Beside, round: bool) -> Self {
        let workers = available_parallelism().map_or(2, |cores| cores.get() + 1);
        let turns = Builder::new_multi_thread().worker_threads(workers).enable_all().build();
        let turns = turns.expect("a runtime can be started");
        let system = System::new(turns.handle().clone());
        let origin = Instant::now();
        let waits = Arc::new(Mutex::new(Vec::new()));
        let kept = waits.clone();
        let sink = Native::program("in", None, move |message| {
            // The guest has doubled the time at which it was sent.
            let data = std::str::from_utf8(message.data()).expect("a number is text");
            let sent = data.parse::<u64>().expect("it is an integer") / 2;
            kept.lock().push(origin.elapsed().saturating_sub(Duration::from_nanos(sent)));
        });
        let control = &modules.control;
        let quick_names: Vec<String> = (0..QUICK).map(|n| format!("quick-{n}")).collect();
        let spinner_names: Vec<String> =
            (0..beside.count()).map(|n| format!("spinner-{n}")).collect();
        let spinner = match beside {
            Beside::Spinners(_) => &modules.spinner,
            Beside::Readers => &modules.reader,
            Beside::Given => &modules.given,
            Beside::Loggers => &modules.logger,
        };
        let large = beside.state();
        control.block_on(async {
            let mut start = vec![guest::start(actor("sink"), sink, Settings::default()).await];
            let small = State::new(r#"{"turns":1}"#).expect("it is an object");
            let all = quick_names.iter().map(|name| (name, &modules.quick, &small));
            let all = all.chain(spinner_names.iter().map(|name| (name, spinner, &large)));
            for (name, module, state) in all {
                let name = actor(name);
                let program = prepare(&**module, &name, EnginePer::Actor).await;
                let settings = Settings {
                    timeout: DEADLINE,
                    max_hops: u32::MAX,
                    context_state: beside != Beside::Readers,
                    ..Settings::default()
                };
                let mut actor = guest::start(name, program, settings).await;
                actor.state = Some(state.clone().into());
                start.push(actor);
            }
            let wires = quick_names.iter().map(|name| WireDef {
                from: format!("{name}.out").parse().expect("an actor and its port"),
                to: if round { format!("{name}.value") } else { "sink.in".into() }
                    .parse()
                    .expect("an actor and its port"),
                overflow: None,
            });
            let busy = spinner_names.iter().filter(|_| beside.goes_round()).map(|name| WireDef {
                from: format!("{name}.value").parse().expect("an actor and its port"),
                to: format!("{name}.value").parse().expect("an actor and its port"),
                overflow: None,
            });
            let connect = wires.chain(busy).collect();
            system.apply(Change { start, connect, ..Change::default() }).await;
        });
        let actors = |names: &[String]| {
            names.iter().map(|name| system.actor(name).expect("it was started")).collect()
        };
        let (quick, spinners): (Vec<_>, Vec<_>) = (actors(&quick_names), actors(&spinner_names));
        let rig = Self { system, control, quick, spinners, waits, origin, turns: Some(turns) };
        for spinner in &rig.spinners {
            for _ in 0..if beside.goes_round() { 1 } else { 100 } {
                rig.send(spinner, 0);
            }
        }
        if round {
            for _ in 0..ROUND {
                rig.quick.iter().for_each(|quick| rig.send(quick, 1));
            }
        }
        rig
    }

    fn send(&self, actor: &Actor, number: u128) {
        let to: PortRef = format!("{}.value", actor.name()).parse().expect("an actor and its port");
        let message = Message::new(Type::Integer, number.to_string()).expect("it is a number");
        self.system.send(&to, message, None).expect("quick actors are not behind");
    }

    /// How long each message took to come out of its actor.
    fn waits(self, watched: Duration) -> Vec<Duration> {
        self.control.block_on(async {
            let mut ticks = interval(Duration::from_millis(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let end = Instant::now() + watched;
            let mut tick = 0;
            while Instant::now() < end {
                ticks.tick().await;
                for quick in self.quick.iter().skip(tick % SHARES).step_by(SHARES) {
                    self.send(quick, self.origin.elapsed().as_nanos());
                }
                tick += 1;
                // An actor that fails ten times in a row would be let rest.
                if tick % 1_000 == 0 {
                    for spinner in &self.spinners {
                        spinner.retry().await;
                    }
                }
            }
            let sent = tick * QUICK / SHARES;
            while self.waits.lock().len() < sent {
                sleep(Duration::from_millis(10)).await;
            }
        });
        let waits = std::mem::take(&mut *self.waits.lock());
        self.end();
        waits
    }

    /// Turns of the quick actors in a second.
    fn throughput(self, watched: Duration) -> f64 {
        let done = || self.quick.iter().map(|quick| quick.meters().turns_ok.get()).sum::<u64>();
        let per_second = self.control.block_on(async {
            // Until caches are warm and every spinner spins.
            sleep(watched / 4).await;
            let (before, began) = (done(), Instant::now());
            sleep(watched).await;
            #[expect(clippy::cast_precision_loss, reason = "it is far below 2^52")]
            let turns = (done() - before) as f64;
            turns / began.elapsed().as_secs_f64()
        });
        self.end();
        per_second
    }

    fn end(mut self) {
        let books = self.control.block_on(async {
            self.system.kill().await;
            self.system.books()
        });
        assert!(books.balanced(), "a message was lost or doubled: {books:?}");
        let turns = self.turns.take().expect("it ends once");
        turns.shutdown_timeout(Duration::from_secs(5));
    }
}
