//! What ten thousand live actors take of a machine.
//!
//! Ten modules, the sample `region-count` with another custom section each, are
//! made ready for as many actors as `ACTORS` says. Each is sent a hundred
//! earthquakes, counts them in its state, and puts each count out to a sink. The
//! actors then sit idle, and what the process has grown by is divided among them.
//! The guest's own linear memory is subtracted: those pages of it that are there.

#[path = "rig/goal.rs"]
mod goal;
#[path = "rig/guest.rs"]
mod guest;
#[path = "rig/native.rs"]
mod native;
#[path = "rig/process.rs"]
mod process;

use std::{
    fs::read_to_string,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reflowd_loader::{EngineKind, Limits, Loader};
use reflowd_runtime::{Change, EnginePer, Message, PortRef, Settings, System, Type, WireDef};
use tokio::{runtime::Builder, time::sleep};

use crate::{
    goal::Goal,
    guest::{actor, file, prepare},
    native::Native,
    process::Process,
};

/// Actors, unless `ACTORS` says how many.
const ACTORS: usize = 10_000;

/// Modules that they are made from.
const MODULES: u8 = 10;

/// Turns of each actor.
const TURNS: usize = 100;

/// A mapping so large that only address space is kept by it: what follows a guest's memory.
const RESERVED: u64 = 1 << 30;

fn main() {
    let whole = std::env::args().any(|arg| arg == "--bench");
    let actors = std::env::var("ACTORS").ok().and_then(|actors| actors.parse().ok());
    measure(actors.unwrap_or(if whole { ACTORS } else { 20 }));
}

#[expect(clippy::print_stdout, reason = "figures are what a benchmark is run for")]
fn measure(actors: usize) {
    let workers = available_parallelism().map_or(2, |cores| cores.get() + 1);
    let turns = Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let turns = turns.expect("a runtime can be started");
    let control = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let control = control.expect("a runtime can be started");
    let system = System::new(turns.handle().clone());
    let taken = Arc::new(AtomicUsize::new(0));

    let loader = Loader::new(Limits::default()).with_engine(EngineKind::Direct);
    let module = file("modules/region-count.wasm");
    let modules: Vec<_> = (0..MODULES)
        .map(|n| {
            let loaded = control.block_on(loader.load_bytes("region-count", variant(&module, n)));
            loaded.expect("the sample loads")
        })
        .collect();
    let quakes: Vec<Message> = String::from_utf8_lossy(&file("config/sample/earthquakes.jsonl"))
        .lines()
        .take(TURNS)
        .map(|line| Message::new(Type::Object, line.to_owned()).expect("a line is an object"))
        .collect();

    let before = Process::now();
    let began = Instant::now();
    let ports: Vec<PortRef> = control.block_on(async {
        let counted = taken.clone();
        let sink = Native::program("in", None, move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let mut start = vec![guest::start(actor("sink"), sink, Settings::default()).await];
        let (mut wires, mut ports) = (Vec::new(), Vec::new());
        for n in 0..actors {
            let name = actor(&format!("count-{n}"));
            let program = prepare(&*modules[n % modules.len()], &name, EnginePer::Actor).await;
            wires.push(WireDef {
                from: format!("{name}.counts").parse().expect("an actor and its port"),
                to: "sink.in".parse().expect("an actor and its port"),
                overflow: None,
            });
            ports.push(format!("{name}.quake").parse().expect("an actor and its port"));
            start.push(guest::start(name, program, Settings::default()).await);
        }
        println!("made ready: {:.2?}", began.elapsed());
        let applying = Instant::now();
        system.apply(Change { start, connect: wires, ..Change::default() }).await;
        println!("started and wired: {:.2?}", applying.elapsed());
        ports
    });
    let idle = Process::now();

    let began = Instant::now();
    let took = control.block_on(async {
        for quake in &quakes {
            for to in &ports {
                let sent = system.send_waiting(to, quake.clone(), None).await;
                sent.expect("the actor takes messages");
            }
        }
        while taken.load(Ordering::Relaxed) < actors * quakes.len() {
            sleep(Duration::from_millis(1)).await;
        }
        began.elapsed()
    });
    let after = Process::now();
    let guests = guest_memory();

    let books = system.books();
    assert!(books.balanced(), "a message was lost or doubled: {books:?}");
    let each = |bytes: u64| number(bytes) / number(actors as u64) / 1024.0;
    let of_guest = each(guests);
    let of_idle = each(idle.resident.saturating_sub(before.resident));
    let of_used = each(after.resident.saturating_sub(before.resident));
    let turns_a_second = number((actors * quakes.len()) as u64) / took.as_secs_f64();
    println!("{actors} actors of {MODULES} modules, {} turns each", quakes.len());
    println!("before:     {before:?}\nstarted:    {idle:?}\nhaving run: {after:?}");
    println!("resident, KiB an actor: {of_idle:.1} started, {of_used:.1} having run");
    println!("of it the guest's linear memory: {of_guest:.1}");
    println!("turns a second, with their sender: {turns_a_second:.0}");
    println!("mappings an actor: {:.2}", number(after.mappings) / number(actors as u64));
    Goal::Below(64.0).hold(
        "idle actor: resident beyond the guest's own",
        of_used - of_guest,
        " KiB",
    );
    Goal::AtLeast(number(ACTORS as u64)).hold(
        "live actors in one process",
        number(actors as u64),
        "",
    );

    control.block_on(system.kill());
}

/// The same module with other bytes: a custom section changes nothing but the digest.
fn variant(module: &Bytes, n: u8) -> Bytes {
    let mut bytes = module.to_vec();
    // Section 0 of three bytes: a name of one letter, and one byte of content.
    bytes.extend([0, 3, 1, b'v', n]);
    bytes.into()
}

/// Bytes of linear memory that are resident: those of the mappings right before
/// address space that only keeps others away.
fn guest_memory() -> u64 {
    let text = read_to_string("/proc/self/smaps").expect("this is Linux");
    let mut sum = 0;
    // The bytes, so far, of mappings that touch each other.
    let (mut run, mut end, mut reserved) = (0, 0, false);
    for line in text.lines() {
        if let Some((from, to, writable)) = mapping(line) {
            reserved = !writable && to - from >= RESERVED;
            if reserved && from == end {
                sum += run;
            }
            if !writable || from != end {
                run = 0;
            }
            end = to;
        } else if let Some(kib) = line.strip_prefix("Rss:")
            && !reserved
        {
            let kib = kib.trim().trim_end_matches(" kB").parse::<u64>();
            run += kib.expect("the kernel says a number") * 1024;
        }
    }
    sum
}

/// The bounds of a mapping and whether it can be written; none for other lines.
fn mapping(line: &str) -> Option<(u64, u64, bool)> {
    let mut words = line.split(' ');
    let (from, to) = words.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some((hex(from)?, hex(to)?, words.next()?.starts_with("rw")))
}

#[expect(clippy::cast_precision_loss, reason = "it is far below 2^52")]
fn number(n: u64) -> f64 {
    n as f64
}
