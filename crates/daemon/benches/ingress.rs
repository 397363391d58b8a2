//! What it costs to come in over HTTP and to be answered by a module: requests a second and
//! their times, beside a server that answers by itself.
//!
//! Three ways take turns: the daemon with a route that waits for what a relay puts out, the
//! same without waiting (202), and a bare axum that gives back the body. Each server is a
//! process of its own; senders are threads with a connection each and one request on its way.
//! `SECONDS` is how long a turn is, `SENDERS` how many there are.

#![expect(clippy::print_stdout, reason = "figures are what a benchmark is run for")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, routing::post};

/// Turns of each way.
const ROUNDS: usize = 5;

/// Tells this program that it is to be the bare server.
const ECHO: &str = "REFLOWD_BENCH_ECHO";

/// What is sent: 100 bytes.
const BODY: &str = r#"{"order":4711,"items":[{"sku":"A-1","count":2},{"sku":"B-2","count":1}],"to":"Kitchen table, Home"}"#;

const CONFIG: &str = r#"
[daemon]
modules = "modules"
data = "data"
autostart = false
[actors.door]
module = "std:http-in"
config = { listen = "127.0.0.1:0", routes = [
    { path = "/wait", port = "in", type = "Object", wait = "relay.out" },
    { path = "/send", port = "in", type = "Object" },
] }
[actors.relay]
module = "relay"
[[wires]]
from = "door.in"
to = "relay.in"
"#;

fn main() {
    if env::var_os(ECHO).is_some() {
        return echo();
    }
    let seconds = number("SECONDS", 2);
    let senders = number("SENDERS", 16);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (_daemon, door) = daemon(folder.path());
    let (_echo, bare) = bare();
    let ways = [
        ("to a module and back, `wait`", door, "/wait", 200),
        ("to a module, 202", door, "/send", 202),
        ("bare axum, the body back", bare, "/", 200),
    ];
    let time = Duration::from_secs(seconds);
    for (_, at, path, status) in ways {
        round(at, path, status, senders, Duration::from_millis(300));
    }
    let mut figures: [Vec<Figures>; 3] = Default::default();
    for first in 0..ROUNDS {
        for way in 0..ways.len() {
            let way = (way + first) % ways.len();
            let (_, at, path, status) = ways[way];
            figures[way].push(round(at, path, status, senders, time));
        }
    }
    println!("{senders} senders, medians of {ROUNDS} rounds of {seconds} s");
    println!("| | requests/s | p50 | p99 |\n|---|---|---|---|");
    for ((name, ..), figures) in ways.iter().zip(&figures) {
        let (rate, p50, p99) =
            (median(figures, |f| f.rate), median(figures, |f| f.p50), median(figures, |f| f.p99));
        println!("| {name} | {rate:.0} | {:.2} ms | {:.2} ms |", p50 * 1e3, p99 * 1e3);
    }
    let share = median(&figures[0], |f| f.rate) / median(&figures[2], |f| f.rate);
    println!("ingress with `wait`: {share:.2} of a bare axum's requests");
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What a round of one way gave; times in seconds.
struct Figures {
    rate: f64,
    p50: f64,
    p99: f64,
}

fn median(figures: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut all: Vec<_> = figures.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Sends for so long, from so many connections at once.
fn round(at: SocketAddr, path: &str, status: u16, senders: u64, time: Duration) -> Figures {
    let began = Instant::now();
    let path = path.to_owned();
    let threads: Vec<_> = (0..senders)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || {
                let mut sender = Sender::new(at, &path);
                let mut times = Vec::new();
                while began.elapsed() < time {
                    let sent = Instant::now();
                    match sender.ask() {
                        got if got == status => times.push(sent.elapsed().as_secs_f64()),
                        // The mailbox is full: that is its answer, and not what is measured.
                        429 => thread::yield_now(),
                        other => panic!("{path} answered {other}"),
                    }
                }
                times
            })
        })
        .collect();
    let times = threads.into_iter().map(|thread| thread.join().expect("a sender ends well"));
    let mut times: Vec<f64> = times.flatten().collect();
    let passed = began.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    Figures { rate: times.len() as f64 / passed, p50: at(50), p99: at(99) }
}

/// A connection with one request on its way.
struct Sender {
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
}

impl Sender {
    fn new(at: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(at).expect("the server listens");
        stream.set_nodelay(true).expect("a socket can be told so");
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        Self { stream: BufReader::new(stream), request: request.into() }
    }

    /// The status of the answer.
    fn ask(&mut self) -> u16 {
        self.stream.get_mut().write_all(&self.request).expect("the server takes requests");
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("the server answers");
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("the server answers");
            if line == "\r\n" {
                break;
            }
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().expect("a length is a number");
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("the server answers");
        status.expect("an answer has a status")
    }
}

/// A process that ends with the benchmark.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The daemon, and where its door is.
fn daemon(folder: &Path) -> (Server, SocketAddr) {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests");
    fs::create_dir(folder.join("modules")).expect("the folder is ours");
    fs::write(folder.join("reflowd.toml"), CONFIG).expect("the folder is ours");
    fs::copy(guests.join("relay.wasm"), folder.join("modules/relay.wasm"))
        .expect("the guest is in the repository");
    let mut child = Command::new(env!("CARGO_BIN_EXE_reflowd"))
        .args(["--config", "reflowd.toml"])
        .current_dir(folder)
        .env("RUST_LIB_BACKTRACE", "0")
        .env("REFLOWD_LOG_FORMAT", "json")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary was built");
    let mut log = BufReader::new(child.stderr.take().expect("it is a pipe"));
    let server = Server(child);
    let mut line = String::new();
    let at = loop {
        line.clear();
        let read = log.read_line(&mut line).expect("the log is text");
        assert!(read > 0, "the daemon ended");
        if line.contains("\"listening\"") {
            let (_, rest) = line.split_once("\"address\":\"").expect("it says where");
            break rest.split('"').next().and_then(|at| at.parse().ok()).expect("an address");
        }
    };
    // What it says from here on must not fill the pipe.
    thread::spawn(move || _ = std::io::copy(&mut log, &mut std::io::sink()));
    (server, at)
}

/// This program once more, as the bare server.
fn bare() -> (Server, SocketAddr) {
    let program = env::current_exe().expect("this program has a file");
    let mut child = Command::new(program)
        .env(ECHO, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program can be run");
    let mut out: BufReader<ChildStdout> = BufReader::new(child.stdout.take().expect("a pipe"));
    let server = Server(child);
    let mut line = String::new();
    out.read_line(&mut line).expect("it says where it listens");
    (server, line.trim().parse().expect("an address"))
}

fn echo() {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be had");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        println!("{}", listener.local_addr().expect("it is bound"));
        let router = Router::new().route("/", post(async |body: Bytes| body));
        axum::serve(listener, router).await.expect("it serves for ever");
    });
}
