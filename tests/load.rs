//! A load: four senders with numbered messages, and a sink that misses none of them.
//!
//! Both are outside of the daemon. A sender has only so many messages on their way at a
//! time, so that the time from send to sink is the daemon's and not that of a queue.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufReader, BufWriter, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use crate::rig::{Daemon, PATIENCE, pause, read_response, request_at};

pub(crate) const SENDERS: usize = 4;

/// Messages that a sender writes at once.
const BATCH: u64 = 16;

/// The messages of one sender that are on their way.
#[derive(Default)]
struct Window {
    way: Mutex<Way>,
    more: Condvar,
}

#[derive(Default)]
struct Way {
    /// The number after the last one that has arrived.
    arrived: u64,
    /// When batches left, and the numbers after their last ones.
    left: VecDeque<(u64, Instant)>,
}

impl Window {
    /// Waits until no more than `most` are on their way with another batch.
    fn wait_for_room(&self, sent: u64, most: u64) {
        let mut way = self.way.lock();
        while way.arrived + most < sent + BATCH {
            let late = self.more.wait_for(&mut way, PATIENCE).timed_out();
            assert!(!late, "{} of {sent} have arrived", way.arrived);
        }
        way.left.push_back((sent + BATCH, Instant::now()));
    }

    /// Takes down that a message has arrived, and gives how long it took.
    fn arrive(&self, seq: u64) -> Duration {
        let mut way = self.way.lock();
        way.arrived = way.arrived.max(seq + 1);
        while way.left.len() > 1 && way.left[0].0 <= seq {
            way.left.pop_front();
        }
        let took = way.left.front().map_or(Duration::ZERO, |(_, left)| left.elapsed());
        self.more.notify_all();
        took
    }
}

/// Numbered messages that go to an actor until it is enough.
pub(crate) struct Load {
    enough: Arc<AtomicBool>,
    disturbed: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    senders: Vec<thread::JoinHandle<u64>>,
    sink: thread::JoinHandle<Seen>,
    socket: PathBuf,
    path: String,
}

impl Load {
    /// Begins to send to `actor.in`, and to read what the daemon puts out; each sender has
    /// at most `window` messages on their way.
    pub(crate) fn begin(daemon: &mut Daemon, actor: &str, window: u64) -> Self {
        let (enough, disturbed, arrived) = (Arc::default(), Arc::default(), Arc::default());
        let path = format!("/v1/actors/{actor}/ports/in?block=true");
        let windows: Arc<[Window; SENDERS]> = Arc::default();
        let senders = (0..SENDERS).map(|sender| {
            let (windows, enough) = (Arc::clone(&windows), Arc::clone(&enough));
            let (stream, path) = (daemon.connect(), path.clone());
            thread::spawn(move || send(&stream, &path, sender, &windows[sender], window, &enough))
        });
        let senders = senders.collect();
        let lines = daemon.take_lines();
        let (count, storm) = (Arc::clone(&arrived), Arc::clone(&disturbed));
        let sink = thread::spawn(move || receive(&lines, &windows, &count, &storm));
        let socket = daemon.world.socket();
        Self { enough, disturbed, arrived, senders, sink, socket, path }
    }

    /// Messages that have arrived so far.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Waits until so many have arrived.
    #[track_caller]
    pub(crate) fn wait_for(&self, messages: u64) {
        let patience = PATIENCE * u32::try_from(1 + messages / 100_000).unwrap();
        let began = Instant::now();
        while self.arrived() < messages {
            assert!(began.elapsed() < patience, "only {} have arrived", self.arrived());
            pause();
        }
    }

    /// Says whether something is done to the daemon from now on.
    pub(crate) fn disturbed(&self, yes: bool) {
        self.disturbed.store(yes, Ordering::Relaxed);
    }

    /// Ends it and gives what the sink has seen, once all has arrived.
    #[track_caller]
    pub(crate) fn end(self) -> Seen {
        self.enough.store(true, Ordering::Relaxed);
        let sent: Vec<u64> = self.senders.into_iter().map(|s| s.join().unwrap()).collect();
        // The last one, of a sender of its own, is behind all others.
        let last = format!("{{\"type\":\"Object\",\"data\":{{\"sender\":{SENDERS},\"seq\":0}}}}\n");
        let kind = "application/x-ndjson";
        let response = request_at(&self.socket, "POST", &self.path, kind, last.as_bytes());
        assert_eq!(response.json()["accepted"], 1, "{response:?}");
        let mut seen = self.sink.join().unwrap();
        seen.sent = sent.iter().sum();
        for (sent, next) in sent.iter().zip(seen.next) {
            seen.lost += sent.saturating_sub(next);
        }
        seen
    }
}

/// Sends numbered messages in one request until it is enough, and gives how many.
fn send(
    stream: &UnixStream,
    path: &str,
    sender: usize,
    window: &Window,
    most: u64,
    enough: &AtomicBool,
) -> u64 {
    let mut out = BufWriter::with_capacity(1 << 16, stream);
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    out.write_all(head.as_bytes()).unwrap();
    let mut sent = 0;
    while !enough.load(Ordering::Relaxed) {
        window.wait_for_room(sent, most);
        let line = |seq| {
            format!("{{\"type\":\"Object\",\"data\":{{\"sender\":{sender},\"seq\":{seq}}}}}\n")
        };
        let lines: String = (sent..sent + BATCH).map(line).collect();
        write!(out, "{:x}\r\n{lines}\r\n", lines.len()).unwrap();
        out.flush().unwrap();
        sent += BATCH;
    }
    out.write_all(b"0\r\n\r\n").unwrap();
    out.flush().unwrap();
    drop(out);
    let response = read_response(&mut BufReader::new(stream));
    assert_eq!(response.json()["accepted"], sent, "{response:?}");
    _ = stream.shutdown(Shutdown::Both);
    sent
}

/// Reads what the daemon puts out until the very last message.
fn receive(
    lines: &mpsc::Receiver<String>,
    windows: &[Window; SENDERS],
    arrived: &AtomicU64,
    disturbed: &AtomicBool,
) -> Seen {
    let mut seen = Seen::default();
    loop {
        let line = lines.recv_timeout(PATIENCE).unwrap();
        let message: Value = serde_json::from_str(&line).unwrap();
        let sender = usize::try_from(message["sender"].as_u64().unwrap()).unwrap();
        if sender == SENDERS {
            return seen;
        }
        let seq = message["seq"].as_u64().unwrap();
        let took = u32::try_from(windows[sender].arrive(seq).as_micros()).unwrap_or(u32::MAX);
        let disturbed = disturbed.load(Ordering::Relaxed);
        if disturbed { &mut seen.disturbed_micros } else { &mut seen.steady_micros }.push(took);
        seen.take(sender, seq, &message);
        arrived.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the sink has seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) sent: u64,
    next: [u64; SENDERS],
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) disordered: u64,
    /// Messages whose count in the state is not one more than that before it.
    pub(crate) miscounted: u64,
    counted: u64,
    /// Messages by the version that stamped them.
    pub(crate) stamps: BTreeMap<String, u64>,
    /// Microseconds from send to sink while nothing was done to the daemon, and while something was.
    pub(crate) steady_micros: Vec<u32>,
    pub(crate) disturbed_micros: Vec<u32>,
}

impl Seen {
    fn take(&mut self, sender: usize, seq: u64, message: &Value) {
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
        if let Some(count) = message["count"].as_u64() {
            self.miscounted += u64::from(count != self.counted + 1);
            self.counted = count;
        }
    }

    /// Every message has arrived once, in order, and was counted in the state before it.
    #[track_caller]
    pub(crate) fn check(&self) {
        let bad = (self.lost, self.doubled, self.disordered, self.miscounted);
        assert_eq!(bad, (0, 0, 0, 0), "lost, doubled, out of order, miscounted");
        assert_eq!(self.next.iter().sum::<u64>(), self.sent);
    }
}

/// The value below which so many thousandths of all are.
pub(crate) fn quantile<T: Copy + Ord + Default>(values: &[T], thousandths: usize) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * thousandths / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}
