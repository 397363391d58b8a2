//! Guests that mean harm, each beside three actors that must not notice.
//!
//! `tests/hostile/*.wat` are the guests. The first line of each says what must
//! happen and what it does: `;; VERDICT | text`, the verdict one of
//!
//! | verdict | what happens |
//! |---|---|
//! | `refused WORDS` | it never goes live; the event's reason is WORDS, or its text has them |
//! | `dead CLASS` | every message that it gets becomes a dead letter of that class, or of any |
//! | `serves` | every message ends well: what it does harms nobody |
//! | `survives` | every message ends, well or as a dead letter |
//! | `bounded` | it is refused, or it serves: what it costs has a bound |
//!
//! A line `;; extism: …` gives the stock engine's own verdict, or `skipped` with
//! the exemption; `;; messages: N` sends the numbers below N instead of three.
//! Lines between `;; repeat N` and `;; end` stand there N times.
//!
//! `REFLOWD_HOSTILE=part` runs the guests whose name has that part.

use std::{
    collections::VecDeque,
    io::{BufReader, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::rig::{Daemon, PATIENCE, World, guest, read_response, repository};

/// How much more memory the daemon may hold after a guest has gone than before the first
/// of them came, in MiB.
const MEMORY: u64 = 20;

/// Messages of the healthy actors that are on their way at any time.
const WINDOW: usize = 4;

/// Messages before the first guest: the undisturbed figure, and the memory to come back to.
const WARM: usize = 3000;

/// Numbers sent to a guest that does not say how many.
const MESSAGES: usize = 3;

fn config(engine: &str, hostile: Option<&str>) -> String {
    let hostile = hostile.map(|name| {
        format!(
            "{name} = {{ module = \"{name}\", timeout = \"300ms\", memory = \"16 MiB\", \
             output = \"256 KiB\", state_size = \"16 KiB\", retries = 0, log_rate = 5 }}"
        )
    });
    format!(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        quiet = "10ms"
        autostart = false
        engine = "{engine}"
        [actors]
        first = {{ module = "relay" }}
        second = {{ module = "stamp" }}
        third = {{ module = "relay" }}
        screen = {{ module = "std:stdout" }}
        {}
        [[wires]]
        from = "first.out"
        to = "second.in"
        [[wires]]
        from = "second.out"
        to = "third.in"
        [[wires]]
        from = "third.out"
        to = "screen.in"
        "#,
        hostile.unwrap_or_default()
    )
}

/// A guest and what is expected of it.
struct Hostile {
    name: String,
    module: Vec<u8>,
    verdict: String,
    messages: usize,
    /// What its messages may come to instead: the stock engine counts the time that a guest
    /// waits for a core, so on a busy machine its deadline may come before any other bound.
    or: Option<&'static str>,
}

/// All guests that are run on this engine, by name.
fn guests(engine: &str) -> Vec<Hostile> {
    let wanted = std::env::var("REFLOWD_HOSTILE").unwrap_or_default();
    let folder = repository().join("tests/hostile");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let said = |what: &str| {
            let line =
                text.lines().take(3).find_map(|line| line.strip_prefix(&format!(";; {what}: ")));
            line.map(str::to_owned)
        };
        let first = text.lines().next().unwrap();
        let (verdict, _) =
            first.strip_prefix(";; ").and_then(|line| line.split_once(" | ")).unwrap();
        let own = said("extism").filter(|_| engine == "extism");
        let verdict = own.unwrap_or_else(|| verdict.to_owned());
        let messages = said("messages").map_or(MESSAGES, |n| n.parse().unwrap());
        if verdict.starts_with("skipped") || !name.contains(&wanted) {
            return None;
        }
        let module = wat::parse_str(repeated(&text)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let or = (engine == "extism").then_some("timeout");
        Some(Hostile { name, module, verdict, messages, or })
    };
    paths.iter().filter_map(read).collect()
}

/// The text with what is to be repeated written out.
fn repeated(text: &str) -> String {
    let mut open = vec![(1, String::new())];
    for line in text.lines() {
        if let Some(times) = line.trim().strip_prefix(";; repeat ") {
            open.push((times.parse().unwrap(), String::new()));
        } else if line.trim() == ";; end" {
            let (times, part) = open.pop().unwrap();
            open.last_mut().unwrap().1 += &part.repeat(times);
        } else {
            open.last_mut().unwrap().1 += &format!("{line}\n");
        }
    }
    open.pop().unwrap().1
}

/// Numbered messages through the three healthy actors, as fast as they go.
struct Feed {
    thread: thread::JoinHandle<usize>,
    enough: Arc<AtomicBool>,
    taken: Arc<Mutex<Vec<Duration>>>,
}

impl Feed {
    fn start(daemon: &mut Daemon) -> Self {
        let (stream, lines) = (daemon.connect(), daemon.take_lines());
        let (enough, taken) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (told, times) = (Arc::clone(&enough), Arc::clone(&taken));
        let thread = thread::spawn(move || feed(&stream, &lines, &told, &times));
        Self { thread, enough, taken }
    }

    /// How long each message took that has arrived since this was last asked.
    fn times(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.taken.lock().unwrap())
    }

    /// Ends the feed, and gives the number of its messages, none of which was lost.
    fn end(self) -> usize {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn feed(
    stream: &UnixStream,
    lines: &mpsc::Receiver<String>,
    enough: &AtomicBool,
    times: &Mutex<Vec<Duration>>,
) -> usize {
    let mut out = stream;
    let head = "POST /v1/actors/first/ports/in?block=true HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
    out.write_all(head.as_bytes()).unwrap();
    let (mut sent, mut taken, mut under_way) = (0, 0, VecDeque::new());
    loop {
        while under_way.len() < WINDOW && !enough.load(Ordering::Relaxed) {
            let line =
                format!("{{\"type\":\"Object\",\"data\":{{\"sender\":0,\"seq\":{sent}}}}}\n");
            out.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).unwrap();
            under_way.push_back(Instant::now());
            sent += 1;
        }
        let Some(left) = under_way.pop_front() else { break };
        let line = lines.recv_timeout(PATIENCE).expect("the healthy actors go on");
        let message: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(message["seq"], taken, "a message was lost, doubled or overtaken");
        taken += 1;
        times.lock().unwrap().push(left.elapsed());
    }
    out.write_all(b"0\r\n\r\n").unwrap();
    let response = read_response(&mut BufReader::new(stream));
    assert_eq!(response.json()["accepted"], sent, "{response:?}");
    taken
}

/// The time that 99 of 100 messages do not exceed.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// Memory of the process, in MiB.
fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Runs all guests on one engine, one after the other, in one daemon.
fn run(engine: &str) {
    let world = World::new(&config(engine, None));
    world.module("relay", &guest("relay"));
    world.module("stamp", &guest("stamp-a"));
    let mut daemon = world.start();
    let feed = Feed::start(&mut daemon);
    daemon.until("the healthy actors are warm", |_| feed.taken.lock().unwrap().len() >= WARM);
    let (undisturbed, memory) = (p99(feed.times()), resident(&daemon));
    println!(
        "{engine}: undisturbed p99 of the healthy actors {undisturbed:?}, memory {memory} MiB"
    );
    let guests = guests(engine);
    for hostile in &guests {
        let event = judge(&daemon, engine, hostile);
        let beside = p99(feed.times());
        daemon.until(&format!("{} gives its memory back", hostile.name), |daemon| {
            resident(daemon) <= memory + MEMORY || engine == "extism"
        });
        let now = resident(&daemon);
        println!(
            "{:28} {:28} p99 {beside:>12.3?} {now:>5} MiB  {event}",
            hostile.name, hostile.verdict
        );
    }
    let fed = feed.end();
    println!("{engine}: {} hostile guests, {fed} healthy messages, none lost", guests.len());
    daemon.check_books();
    let healthy = daemon.metrics().into_iter().filter(|(name, _)| {
        name.starts_with("reflowd_dead_letters_total")
            && ["first", "second", "third"]
                .iter()
                .any(|actor| name.contains(&format!("\"{actor}\"")))
    });
    assert_eq!(healthy.map(|(_, n)| n).sum::<f64>(), 0.0);
}

/// Lets a guest in, holds what it does against its verdict, and removes it.
/// Gives what an operator reads about it.
fn judge(daemon: &Daemon, engine: &str, hostile: &Hostile) -> String {
    let Hostile { name, module, verdict, .. } = hostile;
    let (word, words) = verdict.split_once(' ').unwrap_or((verdict, ""));
    daemon.world.module(name, module);
    daemon.world.config(&config(engine, Some(name)));
    let about = |event: &Value| {
        let mentions = |key: &str| event[key].to_string().contains(&format!("{name}\""));
        (event["event"] == "started" && event["actor"] == **name)
            || (event["event"] == "module-refused"
                && event["module"].to_string().contains(&format!("{name}.wasm")))
            || (event["event"] == "change-refused" && mentions("actors"))
    };
    let event = daemon.events(0).find(about);
    let mut told = event["why"].as_str().unwrap_or_default().to_owned();
    if word == "refused" || (word == "bounded" && event["event"] != "started") {
        let reason = event["reason"].as_str().unwrap_or_default();
        assert!(reason == words || told.contains(words), "{name}: {event}");
        assert!(!told.is_empty(), "{name}: {event}");
    } else {
        assert_eq!(event["event"], "started", "{name}: {event}");
        told = turns(daemon, hostile, word, words);
    }
    assert_eq!(daemon.get("/livez").status, 200, "{name}");
    daemon.world.config(&config(engine, None));
    std::fs::remove_file(daemon.world.path(&format!("modules/{name}.wasm"))).unwrap();
    daemon.until(&format!("{name} is gone"), |daemon| daemon.actor(name).is_null());
    told.chars().take(120).collect()
}

/// Sends a guest its messages and waits until each has ended.
fn turns(daemon: &Daemon, hostile: &Hostile, word: &str, class: &str) -> String {
    let Hostile { name, messages, or, .. } = hostile;
    let messages = *messages;
    let mut sent = 0;
    for n in 0..messages {
        daemon.send(&format!("{name}.in"), &n.to_string());
        sent += 1;
        if messages > MESSAGES {
            // One that ends well in between: a guest that only fails is left to rest.
            daemon.send(&format!("{name}.in"), &messages.to_string());
            sent += 1;
        }
    }
    let books = |daemon: &Daemon, key: &str| daemon.actor(name)["books"][key].as_u64().unwrap_or(0);
    daemon.until(&format!("the turns of {name} have ended"), |daemon| {
        books(daemon, "completed") + books(daemon, "dead_lettered") == sent
    });
    let dead = books(daemon, "dead_lettered");
    let expected = match word {
        "dead" => sent,
        "serves" | "bounded" => 0,
        _ => dead,
    };
    let letters = daemon.get(&format!("/v1/dead-letters?actor={name}")).body;
    assert_eq!(dead, expected, "{name}: {}", letters.chars().take(2000).collect::<String>());
    if dead == 0 {
        return String::new();
    }
    let metrics = daemon.metrics();
    let of_class = metrics.iter().filter(|(key, _)| {
        key.starts_with("reflowd_dead_letters_total{")
            && key.contains(&format!("actor=\"{name}\""))
            && (key.contains(class) || or.is_some_and(|or| key.contains(or)))
    });
    let counted = of_class.map(|(_, n)| *n).sum::<f64>().to_string();
    assert_eq!(counted, dead.to_string(), "{name}: {metrics:#?}");
    let letter: Value = serde_json::from_str(letters.lines().next().unwrap()).unwrap();
    letter["reason"].as_str().unwrap().to_owned()
}

#[test]
fn hostile_guests_harm_nobody() {
    run("direct");
}

#[test]
fn hostile_guests_harm_nobody_on_the_stock_engine_within_its_exemptions() {
    run("extism");
}
