//! Swaps under load: nothing lost, nothing doubled, nothing out of order.
//!
//! The senders and the sink are outside the daemon. `REFLOWD_LOAD=1000000` runs
//! the full size; without it, a size that fits into a test run.

use std::{
    collections::BTreeMap,
    io::{BufReader, BufWriter, Write},
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use crate::rig::{Daemon, World, guest, read_response};

const SENDERS: usize = 4;

/// Messages of all senders together.
fn load() -> usize {
    std::env::var("REFLOWD_LOAD").map_or(60_000, |n| n.parse().unwrap())
}

/// `in -> stamp -> out -> screen`: three WebAssembly actors and the sink.
const CHAIN: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
[actors]
first = { module = "relay" }
stamp = { module = "stamp" }
last = { module = "last" }
screen = { module = "std:stdout" }
[[wires]]
from = "first.out"
to = "stamp.in"
[[wires]]
from = "stamp.out"
to = "last.in"
[[wires]]
from = "last.out"
to = "screen.in"
"#;

fn chain() -> Daemon {
    let world = World::new(CHAIN);
    world.module("relay", &guest("relay"));
    world.module("last", &guest("relay"));
    world.module("stamp", &guest("stamp-a"));
    world.start()
}

/// Times that something was done to the daemon under load, for senders that wait for it.
#[derive(Default)]
struct Acts {
    done: Mutex<usize>,
    more: Condvar,
}

impl Acts {
    fn add_one(&self) {
        *self.done.lock() += 1;
        self.more.notify_all();
    }

    fn wait_for(&self, times: usize) {
        let mut done = self.done.lock();
        while *done < times {
            let late = self.more.wait_for(&mut done, Duration::from_secs(60)).timed_out();
            assert!(!late, "done {done} times of {times}");
        }
    }
}

/// Parts of a load; before each but the first, one more thing is done to the daemon.
/// However quick it is, the load does not end before.
const PARTS: usize = 5;

/// Sends `count` numbered messages in one request that waits for room.
fn send(daemon: &Daemon, sender: usize, count: usize, acts: &Arc<Acts>) -> thread::JoinHandle<()> {
    let stream = daemon.connect();
    let acts = Arc::clone(acts);
    thread::spawn(move || {
        let mut out = BufWriter::with_capacity(1 << 16, &stream);
        let head = "POST /v1/actors/first/ports/in?block=true HTTP/1.1\r\nHost: localhost\r\n\
                    Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
        out.write_all(head.as_bytes()).unwrap();
        let mut part = 0;
        for batch in (0..count).collect::<Vec<_>>().chunks(64) {
            if batch[0] * PARTS / count > part {
                part += 1;
                out.flush().unwrap();
                acts.wait_for(part);
            }
            let lines: String = batch
                .iter()
                .map(|seq| {
                    format!(
                        "{{\"type\":\"Object\",\"data\":{{\"sender\":{sender},\"seq\":{seq}}}}}\n"
                    )
                })
                .collect();
            write!(out, "{:x}\r\n{lines}\r\n", lines.len()).unwrap();
        }
        out.write_all(b"0\r\n\r\n").unwrap();
        out.flush().unwrap();
        drop(out);
        let response = read_response(&mut BufReader::new(&stream));
        assert_eq!(response.json()["accepted"], count, "{response:?}");
        _ = stream.shutdown(Shutdown::Both);
    })
}

/// What the sink has seen.
#[derive(Default)]
struct Seen {
    next: [u64; SENDERS],
    lost: u64,
    doubled: u64,
    disordered: u64,
    stamps: BTreeMap<String, u64>,
}

impl Seen {
    fn take(&mut self, line: &str) {
        let message: Value = serde_json::from_str(line).unwrap();
        let sender = usize::try_from(message["sender"].as_u64().unwrap()).unwrap();
        let seq = message["seq"].as_u64().unwrap();
        let next = &mut self.next[sender];
        match seq.cmp(next) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => self.lost += seq - *next,
            std::cmp::Ordering::Less if seq + 1 == *next => self.doubled += 1,
            std::cmp::Ordering::Less => self.disordered += 1,
        }
        *next = (*next).max(seq + 1);
        if let Some(stamp) = message["stamp"].as_str() {
            *self.stamps.entry(stamp.to_owned()).or_default() += 1;
        }
    }

    #[track_caller]
    fn check(&self, each: usize) {
        assert_eq!((self.lost, self.doubled, self.disordered), (0, 0, 0));
        assert_eq!(self.next, [each as u64; SENDERS]);
    }
}

/// Does something to the daemon again and again until it is told that all has arrived.
fn meanwhile(
    arrived: &Arc<AtomicBool>,
    acts: &Arc<Acts>,
    mut act: impl FnMut(usize) + Send + 'static,
) -> thread::JoinHandle<usize> {
    let (arrived, acts) = (Arc::clone(arrived), Arc::clone(acts));
    thread::spawn(move || {
        let mut times = 0;
        while !arrived.load(Ordering::Relaxed) {
            act(times);
            times += 1;
            acts.add_one();
        }
        times
    })
}

#[test]
fn versions_alternate_under_load_and_every_message_arrives_once_in_order() {
    let mut daemon = chain();
    let each = load() / SENDERS;
    let began = Instant::now();
    let acts = Arc::default();
    let senders: Vec<_> = (0..SENDERS).map(|n| send(&daemon, n, each, &acts)).collect();
    let arrived = Arc::new(AtomicBool::new(false));
    let world = daemon.world.path("");
    let (stream, versions) = (daemon.world.socket(), [guest("stamp-b"), guest("stamp-a")]);
    let swapper = meanwhile(&arrived, &acts, move |n| {
        let target = world.join("modules/stamp.wasm");
        std::fs::write(world.join("modules/.next"), &versions[n % 2]).unwrap();
        std::fs::rename(world.join("modules/.next"), target).unwrap();
        let response = crate::rig::request(&stream, "POST", "/v1/reload");
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(response.json()["refused"], Value::Array(Vec::new()), "{response:?}");
    });
    let mut seen = Seen::default();
    for _ in 0..each * SENDERS {
        let line = daemon.line().unwrap();
        seen.take(&line);
    }
    let seconds = began.elapsed().as_secs_f64();
    arrived.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let reloads = swapper.join().unwrap();
    daemon.check_books();
    seen.check(each);

    let events = daemon.get("/v1/events").body;
    let events: Vec<Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let swaps: Vec<&Value> =
        events.iter().filter(|e| e["event"] == "swapped" && e["actor"] == "stamp").collect();
    let mut depths: Vec<u64> = swaps.iter().map(|e| e["queued"].as_u64().unwrap()).collect();
    depths.sort_unstable();
    let median = depths.get(depths.len() / 2).copied().unwrap_or_default();
    println!("messages sent by 4 senders  {}", each * SENDERS);
    println!("lost / doubled / disordered {} / {} / {}", seen.lost, seen.doubled, seen.disordered);
    println!("reloads asked / swaps       {reloads} / {}", swaps.len());
    println!("mailbox depth at a swap     median {median}, all {depths:?}");
    println!("stamped by version          {:?}", seen.stamps);
    println!("seconds                     {seconds:.1}");
    assert!(swaps.len() >= 2, "{} swaps", swaps.len());
    assert_eq!(seen.stamps.len(), 2, "{:?}", seen.stamps);
}

#[test]
fn rewiring_under_load_keeps_the_wires_that_stay() {
    let mut daemon = chain();
    let each = load() / SENDERS;
    let acts = Arc::default();
    let senders: Vec<_> = (0..SENDERS).map(|n| send(&daemon, n, each, &acts)).collect();
    let arrived = Arc::new(AtomicBool::new(false));
    let (socket, folder) = (daemon.world.socket(), daemon.world.path("config"));
    // A branch that comes, goes and is wired otherwise, beside the chain that stays.
    let edits = [
        "[actors.side]\nmodule = \"relay\"\n[[wires]]\nfrom = \"stamp.out\"\nto = \"side.in\"\n",
        "[actors.side]\nmodule = \"relay\"\n[actors.end]\nmodule = \"relay\"\n\
         [[wires]]\nfrom = \"first.out\"\nto = \"side.in\"\n\
         [[wires]]\nfrom = \"side.out\"\nto = \"end.in\"\n",
        "",
    ];
    let editor = meanwhile(&arrived, &acts, move |n| {
        std::fs::write(folder.join(".next"), format!("{CHAIN}{}", edits[n % edits.len()])).unwrap();
        std::fs::rename(folder.join(".next"), folder.join("reflowd.toml")).unwrap();
        let path = "/v1/reload?allow_removal=true";
        let response = crate::rig::request(&socket, "POST", path);
        assert_eq!(response.json()["refused"], Value::Array(Vec::new()), "{response:?}");
    });
    let mut seen = Seen::default();
    for _ in 0..each * SENDERS {
        let line = daemon.line().unwrap();
        seen.take(&line);
    }
    arrived.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let edits = editor.join().unwrap();
    daemon.check_books();
    seen.check(each);
    println!("messages on the wires that stay {}", each * SENDERS);
    println!(
        "lost / doubled / disordered     {} / {} / {}",
        seen.lost, seen.doubled, seen.disordered
    );
    println!("configuration edits             {edits}");
    assert!(edits >= 3, "{edits} edits");
}
