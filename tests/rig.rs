//! The product in a folder of its own: a real binary, real files, a real socket.
//!
//! Everything that waits here waits for something that the daemon shows (a line,
//! an event, a figure), and gives up after two minutes.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test fails. Compilers share the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Lets others have the cores between two looks at something that is waited for: tests and
/// daemons share them, and looking without a pause takes from both.
pub(crate) fn pause() {
    thread::park_timeout(Duration::from_millis(2));
}

/// The binary under test.
pub(crate) const REFLOWD: &str = env!("CARGO_BIN_EXE_reflowd");

/// The repository, for its sample and its guests.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A guest that the tests bring, by its stem in `tests/guests`.
pub(crate) fn guest(stem: &str) -> Vec<u8> {
    std::fs::read(repository().join("tests/guests").join(format!("{stem}.wasm"))).unwrap()
}

/// The guest that fails as `way` says (its source has the ways), and stamps what it
/// puts out. Other words make another module.
pub(crate) fn shaky(stamp: &str, way: &str) -> Vec<u8> {
    const SCRIPT: usize = 32;
    let mut module = guest("shaky");
    let at = module.windows(6).position(|bytes| bytes == b"SHAKY ").unwrap();
    let script = format!("{:SCRIPT$}", format!("SHAKY {stamp} {way}"));
    assert_eq!(script.len(), SCRIPT);
    module[at..at + SCRIPT].copy_from_slice(script.as_bytes());
    module
}

/// The same module made larger by a section that means nothing: another module
/// to everyone who goes by content, and one that takes long to copy.
pub(crate) fn inflated(module: &[u8], bytes: usize, seed: u8) -> Vec<u8> {
    let mut content = vec![3, b'p', b'a', b'd'];
    content.extend((0..bytes).map(|n| {
        let n = u32::try_from(n % 65_521).unwrap();
        (n.wrapping_mul(2_654_435_761).to_le_bytes()[3]) ^ seed
    }));
    let mut module = module.to_vec();
    module.push(0);
    let mut length = content.len();
    loop {
        let byte = u8::try_from(length & 0x7f).unwrap();
        length >>= 7;
        module.push(if length == 0 { byte } else { byte | 0x80 });
        if length == 0 {
            break;
        }
    }
    module.extend(content);
    module
}

/// A folder with `modules` and `config/reflowd.toml`. The daemon makes `data`.
pub(crate) struct World {
    dir: TempDir,
}

impl World {
    pub(crate) fn new(config: &str) -> Self {
        let world = Self { dir: TempDir::new().unwrap() };
        for folder in ["modules", "config"] {
            std::fs::create_dir(world.path(folder)).unwrap();
        }
        world.config(config);
        world
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("data/reflowd.sock")
    }

    /// Writes the configuration under another name and renames it, as an editor does.
    pub(crate) fn config(&self, text: &str) {
        self.put("config/reflowd.toml", text.as_bytes());
    }

    /// Puts a module into the watched folder by rename.
    pub(crate) fn module(&self, stem: &str, bytes: &[u8]) {
        self.put(&format!("modules/{stem}.wasm"), bytes);
    }

    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        let temporary = path.with_file_name(".being-written");
        std::fs::write(&temporary, bytes).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }

    /// A command of the product, in this folder and with nothing of this environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        // A shell has what it runs in the background ignore signals, and what a daemon inherits
        // it leaves so.
        let mut command = Command::new("/usr/bin/env");
        command.args(["--default-signal=HUP,INT", REFLOWD]);
        command.args(args).current_dir(self.dir.path()).env_clear().env("RUST_BACKTRACE", "1");
        command.env("RUST_LIB_BACKTRACE", "0").stdin(Stdio::null());
        command
    }

    /// Runs a command of the product to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Starts the daemon and waits until it serves.
    pub(crate) fn start(self) -> Daemon {
        let command = self.command(&[]);
        self.start_as(command)
    }

    /// The same, for a daemon whose environment is not empty.
    pub(crate) fn start_as(self, mut command: Command) -> Daemon {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let (sender, out) = mpsc::sync_channel(1 << 16);
        let stdout = BufReader::with_capacity(1 << 20, child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut daemon = Daemon { world: self, child, out, log, books: true };
        let first = daemon.line();
        assert_eq!(first.as_deref(), Some("ready"), "{}", daemon.log_text());
        daemon
    }
}

/// A daemon that runs. Its books are checked, and it is ended, when it drops.
pub(crate) struct Daemon {
    pub(crate) world: World,
    child: Child,
    out: mpsc::Receiver<String>,
    log: Arc<Mutex<Vec<String>>>,
    books: bool,
}

/// An answer of the admin API.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line on stdout; nothing, when it is closed.
    pub(crate) fn line(&mut self) -> Option<String> {
        match self.out.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("no line on stdout:\n{}", self.log_text())
            }
        }
    }

    /// The lines on stdout from now on, for whoever reads them elsewhere.
    pub(crate) fn take_lines(&mut self) -> mpsc::Receiver<String> {
        let (_, nothing) = mpsc::sync_channel(0);
        std::mem::replace(&mut self.out, nothing)
    }

    /// Closes the reading end of the daemon's stdout.
    pub(crate) fn close_stdout(&mut self) {
        drop(self.take_lines());
    }

    pub(crate) fn log_text(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub(crate) fn connect(&self) -> UnixStream {
        connect(&self.world.socket())
    }

    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Response {
        request_at(&self.world.socket(), method, path, content_type, body)
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.request("GET", path, "application/json", b"")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Response {
        self.request("POST", path, "application/json", body.as_bytes())
    }

    /// Sends one plain value and expects it to be taken.
    pub(crate) fn send(&self, to: &str, value: &str) {
        let (actor, port) = to.split_once('.').unwrap();
        let path = format!("/v1/actors/{actor}/ports/{port}?type=Any");
        let response = self.post(&path, value);
        assert_eq!(response.status, 202, "{response:?}");
    }

    /// Looks at disk now.
    pub(crate) fn reload(&self) -> Value {
        self.post("/v1/reload", "").json()
    }

    /// One actor, as `ps` shows it; null, when there is none.
    pub(crate) fn actor(&self, name: &str) -> Value {
        let response = self.get(&format!("/v1/actors/{name}"));
        if response.status == 200 { response.json() } else { Value::Null }
    }

    /// The number of the event with which this process began: those before it are of others.
    fn began(&self) -> u64 {
        let events = self.get("/v1/events").body;
        let mut events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let began = events.rfind(|event| event["event"] == "daemon-started");
        began.map_or(0, |event| event["number"].as_u64().unwrap())
    }

    /// The events of this process of that name, so far.
    pub(crate) fn past(&self, name: &str) -> Vec<Value> {
        let after = self.began();
        let events = self.get(&format!("/v1/events?after={after}")).body;
        let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["event"] == name).collect()
    }

    /// Events of this process from number `after` on, as they come.
    pub(crate) fn events(&self, after: u64) -> Events {
        let after = after.max(self.began());
        let mut stream = self.connect();
        let head =
            format!("GET /v1/events?follow=true&after={after} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the daemon closed the events");
            if line == "\r\n" {
                break;
            }
        }
        Events { reader, rest: String::new() }
    }

    /// Waits for an event of that name about that actor.
    pub(crate) fn wait_event(&self, event: &str, actor: &str) -> Value {
        self.events(0).find(|e| e["event"] == event && e["actor"] == actor)
    }

    /// Waits until something that the daemon shows is so.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let patience = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < patience, "never: {what}\n{}", self.log_text());
            pause();
        }
    }

    /// Waits until the log has these words: it comes by another way than answers and events.
    #[track_caller]
    pub(crate) fn logs(&self, words: &str) {
        self.until(&format!("the log has `{words}`"), |daemon| daemon.log_text().contains(words));
    }

    /// All samples of `/metrics`, by name with labels.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let body = self.get("/metrics").body;
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect()
    }

    /// The sum of all samples of one metric.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        sum(&self.metrics(), name)
    }

    /// Waits until nothing moves, and checks that nothing is lost or doubled.
    #[track_caller]
    pub(crate) fn check_books(&self) {
        self.until("nothing is in hand or on a wire", |daemon| {
            daemon.sum("reflowd_messages_in_flight") + daemon.sum("reflowd_wire_outbox_messages")
                == 0.0
        });
        let metrics = self.metrics();
        let sum = |name: &str| sum(&metrics, name);
        let accepted = sum("reflowd_messages_accepted_total");
        let gone = sum("reflowd_messages_completed_total")
            + sum("reflowd_messages_dead_lettered_total")
            + sum("reflowd_messages_dropped_total")
            + sum("reflowd_messages_saved_total");
        let here = sum("reflowd_messages_in_flight") + sum("reflowd_messages_queued");
        assert_eq!(accepted, gone + here, "the books do not balance: {metrics:#?}");
        assert_eq!(metrics.get("reflowd_books_balanced"), Some(&1.0));
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Ends the daemon as a service manager does, and gives how it ended.
    pub(crate) fn stop(self) -> (ExitStatus, String, World) {
        self.check_books();
        self.signal("-TERM");
        self.ended()
    }

    /// Waits for the end of a daemon that was told to stop.
    pub(crate) fn ended(mut self) -> (ExitStatus, String, World) {
        self.books = false;
        let patience = Instant::now() + PATIENCE;
        let status = loop {
            // What it still prints must not hold it up.
            _ = self.out.recv_timeout(Duration::from_millis(10));
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < patience, "it does not end:\n{}", self.log_text());
        };
        let last = self.log.lock().unwrap().last().cloned().unwrap_or_default();
        let world = World { dir: std::mem::replace(&mut self.world.dir, TempDir::new().unwrap()) };
        (status, last, world)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the log of the daemon:\n{}", self.log_text());
        } else if self.books {
            self.check_books();
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A stream of events.
pub(crate) struct Events {
    reader: BufReader<UnixStream>,
    rest: String,
}

impl Events {
    /// The next event that fits.
    #[track_caller]
    pub(crate) fn find(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            if let Some((line, rest)) = self.rest.split_once('\n') {
                let event: Option<Value> = serde_json::from_str(line).ok();
                self.rest = rest.to_owned();
                if let Some(event) = event.filter(&fits) {
                    return event;
                }
                continue;
            }
            let chunk = read_chunk(&mut self.reader).expect("no such event came");
            self.rest.push_str(&String::from_utf8(chunk).unwrap());
        }
    }
}

/// The sum of all samples of one metric, whatever their labels.
fn sum(metrics: &BTreeMap<String, f64>, name: &str) -> f64 {
    let of = |key: &str| key.split('{').next() == Some(name);
    metrics.iter().filter(|(key, _)| of(key)).map(|(_, value)| value).sum()
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A request from threads that do not have the daemon.
pub(crate) fn request_at(
    socket: &Path,
    method: &str,
    path: &str,
    content_type: &str,
    body: &[u8],
) -> Response {
    let mut stream = connect(socket);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The daemon may answer before it has read everything.
    _ = stream.write_all(body);
    read_response(&mut BufReader::new(stream))
}

pub(crate) fn read_response(reader: &mut impl BufRead) -> Response {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status in {line:?}"));
    let (mut length, mut chunked) = (None, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse::<usize>().ok();
        }
        chunked |= line == "transfer-encoding: chunked";
    }
    let mut body = Vec::new();
    if chunked {
        while let Some(chunk) = read_chunk(reader) {
            body.extend(chunk);
        }
    } else if let Some(length) = length {
        body.resize(length, 0);
        reader.read_exact(&mut body).unwrap();
    }
    Response { status, body: String::from_utf8(body).unwrap() }
}

fn read_chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let length = usize::from_str_radix(line.trim(), 16).ok()?;
    let mut chunk = vec![0; length + 2];
    reader.read_exact(&mut chunk).ok()?;
    chunk.truncate(length);
    (length > 0).then_some(chunk)
}
