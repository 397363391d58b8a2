//! Stops at random moments, while messages come in and a join is half filled.
//!
//! `front -> work -> pair.left`, and a second sender by `side -> pair.right`: what comes out is
//! two by two, so that one that is lost or doubled on either side shifts all after it.

use std::{
    fs,
    io::{BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
};

use serde_json::Value;

use super::{Row, size};
use crate::{
    random::Random,
    rig::{Daemon, World, guest, read_response, repository, shaky},
};

const CONFIG: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
autostart = false
drain = "100ms"
[actors.front]
module = "relay"
mailbox = 16
[actors.side]
module = "relay"
mailbox = 16
[actors.work]
module = "work"
mailbox = 3
[actors.pair]
module = "pair"
trigger = "all"
mailbox = 4
[actors.file]
module = "std:file-out"
mailbox = 2
config = { path = "../out" }
[[wires]]
from = "front.out"
to = "work.in"
[[wires]]
from = "work.out"
to = "pair.left"
[[wires]]
from = "side.out"
to = "pair.right"
[[wires]]
from = "pair.out"
to = "file.in"
"#;

/// Messages of one request.
const BATCH: u64 = 20;

fn world() -> World {
    let world = World::new(CONFIG);
    world.module("relay", &guest("relay"));
    world.module("work", &shaky("v1", "steady"));
    let pair = fs::read(repository().join("tests/storm/pair.wat")).unwrap();
    world.module("pair", &wat::parse_bytes(&pair).unwrap());
    world
}

/// Numbers of one side that come out: of messages, and the count that `work` gave the left.
fn out(world: &Path) -> Vec<[u64; 3]> {
    let text = fs::read_to_string(world.join("out")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| {
        let context: Value = serde_json::from_str(line).unwrap();
        let of = |port: &str, key: &str| {
            let number = context["payload"][port]["data"][key].as_u64();
            number.unwrap_or_else(|| panic!("{port} has no {key}: {line}"))
        };
        [of("left", "seq"), of("right", "seq"), of("left", "count") - 1]
    });
    lines.collect()
}

/// A sender that goes on until the daemon takes no more, or it was told to send that many.
struct Sender {
    path: &'static str,
    /// Messages that were accepted.
    accepted: u64,
}

impl Sender {
    /// Sends up to message `end`; ends early, when the daemon does.
    fn send(mut self, socket: PathBuf, end: u64) -> thread::JoinHandle<Self> {
        thread::spawn(move || {
            while self.accepted < end {
                let upto = end.min(self.accepted + BATCH);
                let all = upto - self.accepted;
                let Some(taken) = self.post(&socket, upto) else { break };
                self.accepted += taken;
                if taken < all {
                    break;
                }
            }
            self
        })
    }

    /// How many of these messages were accepted; nothing, when nobody has read the request.
    fn post(&self, socket: &Path, upto: u64) -> Option<u64> {
        let line = |n| format!("{{\"type\":\"Object\",\"data\":{{\"sender\":0,\"seq\":{n}}}}}\n");
        let body: String = (self.accepted..upto).map(line).collect();
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(crate::rig::PATIENCE)).unwrap();
        write!(
            stream,
            "POST {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{body}",
            self.path,
            body.len()
        )
        .ok()?;
        let mut reader = BufReader::new(stream);
        // Whoever took messages of a request answers it.
        let unread = std::io::BufRead::fill_buf(&mut reader).map_or(true, <[u8]>::is_empty);
        if unread {
            return None;
        }
        let answer = read_response(&mut reader);
        match answer.json()["accepted"].as_u64() {
            Some(accepted) => Some(accepted),
            // Not even the actor was there any more, or the daemon was on its way out.
            None if matches!(answer.status, 404 | 409 | 503) => Some(0),
            None => panic!("{answer:?}"),
        }
    }
}

/// What a round waits for before it stops the daemon.
fn wait(daemon: &Daemon, come: usize, blocked: bool) {
    let path = daemon.world.path("");
    daemon.until("that many have come out", |_| out(&path).len() >= come);
    if blocked {
        daemon.until("its sender is blocked", |d| d.actor("work")["state"] == "blocked");
    }
}

#[test]
fn stops_under_load_with_a_join_half_filled_lose_and_double_nothing() {
    let mut random = Random::seeded();
    let rounds = size(12, 200);
    let mut world = world();
    let mut left = Sender { path: "/v1/actors/front/ports/in?block=true", accepted: 0 };
    let mut right = Sender { path: "/v1/actors/side/ports/in?block=true", accepted: 0 };
    let (mut with_rest, mut saved, mut blocked, mut cut) = (0, 0, 0, 0);
    for _ in 0..rounds {
        let daemon = world.start();
        let socket = daemon.world.socket();
        let begun = out(&daemon.world.path("")).len();
        // One side falls behind the other by what it is not told to send.
        let few = right.accepted.max(left.accepted) + 1 + random.below(200);
        let (lefts, rights) = match random.below(3) {
            0 => (u64::MAX, few),
            1 => (few, u64::MAX),
            _ => (u64::MAX, u64::MAX),
        };
        let lag = rights == few;
        let (a, b) = (left.send(socket.clone(), lefts), right.send(socket, rights));
        let come = begun + random.index(usize::try_from(few).unwrap() - begun);
        let is_blocked = lag && random.below(2) == 0;
        wait(&daemon, come, is_blocked);
        blocked += u32::from(is_blocked);
        daemon.signal("-TERM");
        let (status, last, next) = daemon.ended();
        (left, right) = (a.join().unwrap(), b.join().unwrap());
        assert_eq!(status.code(), Some(0), "{last}");
        let line: Value = serde_json::from_str(&last).unwrap_or_default();
        let rest = line["saved"].as_u64().unwrap_or_default();
        with_rest += u32::from(rest > 0);
        saved += rest;
        cut += u32::from(left.accepted < lefts) + u32::from(right.accepted < rights);
        world = next;
    }
    // The side that is behind makes up for it.
    let daemon = world.start();
    let socket = daemon.world.socket();
    let end = left.accepted.max(right.accepted);
    let (a, b) = (left.send(socket.clone(), end), right.send(socket, end));
    (left, right) = (a.join().unwrap(), b.join().unwrap());
    assert_eq!((left.accepted, right.accepted), (end, end));
    let numbers = usize::try_from(end).unwrap();
    let path = daemon.world.path("");
    let nothing_is_left = |d: &Daemon| {
        d.sum("reflowd_messages_queued")
            + d.sum("reflowd_messages_in_flight")
            + d.sum("reflowd_wire_outbox_messages")
            == 0.0
    };
    daemon.until("all have come out, or nothing is left", |d| {
        out(&path).len() >= numbers || nothing_is_left(d)
    });
    daemon.check_books();
    let out = out(&path);
    let shifted = (0..).zip(&out).filter(|(n, three)| **three != [*n; 3]).count();
    let (lost, doubled, disordered) = compare(&out, end);
    Row {
        name: "SIGTERM at random moments",
        size: format!("{rounds} stops, {} messages of 2 senders", 2 * end),
        messages: Some([lost, doubled, disordered]),
        figures: format!(
            "{with_rest} stops saved {saved} messages; {blocked} with a sender blocked, \
             {cut} senders cut off; pairs that do not fit {shifted}"
        ),
    }
    .print();
    assert_eq!((lost, doubled, disordered, shifted), (0, 0, 0, 0));
    assert!(with_rest > 0, "no stop had anything to save");
}

/// Lost, doubled and out of order, of both sides together.
fn compare(out: &[[u64; 3]], end: u64) -> (u64, u64, u64) {
    let (mut lost, mut doubled, mut disordered) = (0, 0, 0);
    for side in 0..2 {
        let numbers: Vec<u64> = out.iter().map(|three| three[side]).collect();
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        sorted.dedup();
        lost += end - sorted.len() as u64;
        doubled += (numbers.len() - sorted.len()) as u64;
        disordered += numbers.windows(2).filter(|two| two[1] < two[0]).count() as u64;
    }
    (lost, doubled, disordered)
}
