//! The connectors as configurations name and configure them.

mod file_in;

use std::{
    fs,
    io::{self, BufRead},
    time::Duration,
};

use futures_util::future::BoxFuture;
use reflowd_runtime::{
    ActorLog, ActorState, Change, Context, Effects, Engine, InstantiateError, Message, Ready,
    Settings, Start, Status, System, Turn, WireDef,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{self, Instant},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;

fn object(value: serde_json::Value) -> serde_json::Map<String, serde_json::Value> {
    value.as_object().cloned().expect("a config is an object")
}

/// A connector, made ready for an actor with the secret `TOKEN`.
fn prepared(
    builtin: Builtin,
    config: serde_json::Value,
    base: &Path,
) -> Result<Prepared, ConnectorError> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listeners = Arc::new(Listeners::new(TaskTracker::new(), CancellationToken::new()));
    let services = Services { system: System::new(runtime.handle().clone()), listeners };
    runtime.shutdown_background();
    let env = [("TOKEN".into(), "a token that is long".into())].into();
    let keys = GenerationKeys { config: object(config), env, ..GenerationKeys::default() };
    let actor = "source".parse().unwrap();
    let log = ActorLog::new("source".parse().unwrap(), 1);
    builtin.prepare(&Setting { actor: &actor, keys: &keys, log, base, services: &services })
}

#[track_caller]
fn refused(name: &str, value: serde_json::Value, says: &str) {
    let builtin = find(name).unwrap();
    let Err(error) = prepared(builtin, value, Path::new("/")) else {
        panic!("{name} took it");
    };
    let error = error.to_string();
    assert!(error.contains(says) && error.contains(builtin.example()), "{error}");
}

#[test]
fn a_config_that_does_not_fit_is_refused_with_one_that_does() {
    refused("std:interval", json!({}), "missing field `every`");
    refused("std:interval", json!({ "evry": "1s" }), "unknown field `evry`");
    refused("std:interval", json!({ "every": "often" }), "`every` is no duration");
    refused("std:interval", json!({ "every": "0s" }), "1ms to 366 days");
    refused("std:file-in", json!({}), "missing field `path`");
    refused("std:file-in", json!({ "path": "" }), "`path` is empty");
    for path in ["logs/*.log", "in.?", "in-[0-9].log", "{a,b}.log"] {
        refused("std:file-in", json!({ "path": path }), "has wildcards, which are not supported");
    }
    let folder = Path::new("/srv/app[1]/config");
    for path in ["/srv/app[1]/in.log", "/srv/app[1]/config/in.log", "in.log"] {
        prepared(Builtin::FileIn, json!({ "path": path }), folder).map(|_| ()).unwrap();
    }
    refused("std:file-in", json!({ "path": "a", "lines": "csv" }), "unknown variant `csv`");
    refused("std:file-in", json!({ "path": "a", "mode": "always" }), "unknown variant `always`");
    refused("std:file-in", json!({ "path": "a", "rate": 0 }), "from 0.000001 to");
    refused("std:file-in", json!({ "path": "a", "rate": 1e-300 }), "from 0.000001 to");
    refused("std:file-in", json!({ "path": "a", "rate": "many" }), "from 0.000001 to");
    refused("std:file-in", json!({ "path": "a", "rate": [1] }), "messages a second");
    refused("std:file-out", json!({ "append": true }), "missing field `path`");
    refused("std:file-out", json!({ "path": "a", "what": "all" }), "unknown variant `all`");
    refused("std:stdout", json!({ "color": true }), "unknown field `color`");
    refused("std:cron", json!({ "schedule": "often" }), "no cron pattern");
    refused("std:cron", json!({ "schedule": "* * * * *", "zone": "Mars" }), "no time zone `Mars`");
    refused("std:log", json!({ "level": "loud" }), "unknown variant `loud`");
    refused("std:events", json!({ "only": [] }), "`only` names no event");
    refused("std:events", json!({ "only": ["rollback"] }), "did you mean `rolled-back`?");
    let url = |url: &str| json!({ "url": url });
    refused("std:http-out", url("ftp://example.com"), "http:// or https://");
    refused("std:http-out", url("http:///hook"), "`url`");
    refused("std:http-out", url("https://example.com/${KEY}"), "no `KEY` in the actor's `env`");
    let with = |name: &str, value: &str| json!({ "url": "http://a", "headers": { name: value } });
    refused("std:http-out", url("http://u:50%@a/"), "its password: `%` is not percent-encoding");
    let twice = json!({ "url": "http://u:p@a/", "headers": { "authorization": "Bearer x" } });
    refused("std:http-out", twice, "leave one out");
    let pause = json!({ "url": "http://a/", "max_retry_after": "soon" });
    refused("std:http-out", pause, "`max_retry_after` is soon; it is a duration such as 10s");
    refused("std:http-out", json!({ "url": "http://a/", "timeout": "0s" }), "`timeout` is 0");
    refused("std:http-out", with("Content-Length", "1"), "reflowd sets it itself");
    refused("std:http-out", with("Proxy_Connection", "close"), "reflowd sets it itself");
    refused("std:http-out", with("TE", "trailers"), "reflowd sets it itself");
    refused("std:http-out", with("Idempotency-Key", "1"), "reflowd sets it itself");
    refused("std:http-out", with("a b", "1"), "no header name");
    refused("std:http-out", with("X-Key", "${NO}"), "no `NO` in the actor's `env`");
    refused("std:http-out", json!({ "url": "http://a", "method": "GET" }), "POST, PUT or PATCH");
    refused("std:http-out", json!({ "url": "http://a", "timeout": "0s" }), "`timeout`");
}

#[test]
fn every_example_works_and_keeps_to_its_schema() {
    for builtin in Builtin::ALL {
        let example: toml::Table = toml::from_str(builtin.example()).unwrap();
        let example = serde_json::to_value(&example["config"]).unwrap();
        let schema = builtin.metadata().config_schema.unwrap();
        let keys = schema["properties"].as_object().unwrap();
        assert!(example.as_object().unwrap().keys().all(|key| keys.contains_key(key)));
        prepared(builtin, example, Path::new("/")).map(|_| ()).unwrap();
    }
}

#[test]
fn an_unknown_connector_is_answered_with_one_that_is_like_it() {
    let said = |name| unknown(name).to_string();
    assert!(said("std:intervall").contains("did you mean `std:interval`?"));
    assert!(said("std:fileout").contains("did you mean `std:file-out`?"));
    assert!(said("file-in").contains("did you mean `std:file-in`?"));
    let far = said("std:xyz");
    assert!(!far.contains("did you mean"), "{far}");
    assert!(far.contains("`std:interval`, `std:cron`, `std:file-in`, `std:http-in`"));
}

#[test]
fn a_connector_has_a_digest_of_its_own() {
    let digests: std::collections::BTreeSet<_> = Builtin::ALL.map(Builtin::digest).into();
    assert_eq!(digests.len(), Builtin::ALL.len());
    // It may change only with the connector's version.
    assert_eq!(Builtin::Interval.digest().short(), "064a8dbe3e1d");
}

/// A system with connectors, and a sink that remembers what it was given.
struct Rig {
    system: System,
    folder: TempDir,
    got: mpsc::Receiver<Message>,
    /// Held by a test that wants the sink to be behind.
    brake: Arc<Semaphore>,
}

/// An actor that hands every message to the test, one for each permit.
struct Collector {
    metadata: Metadata,
    got: mpsc::Sender<Message>,
    brake: Arc<Semaphore>,
}

struct CollectorEngine(mpsc::Sender<Message>, Arc<Semaphore>);

impl Program for Collector {
    fn digest(&self) -> Digest {
        Digest::new([9; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        let engine = CollectorEngine(self.got.clone(), Arc::clone(&self.brake));
        Box::pin(async { Ok(Box::new(engine) as Box<dyn Engine>) })
    }
}

impl Engine for CollectorEngine {
    fn turn(self: Box<Self>, context: Context, _: Instant) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            self.1.acquire().await.expect("nobody closes it").forget();
            for (_, message) in context.payload {
                self.0.send(message).await.expect("the test reads on");
            }
            Ok((self as Box<dyn Engine>, Effects::default()))
        })
    }
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let system = System::new(tokio::runtime::Handle::current());
        let brake = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { system, folder, got: mpsc::channel(1).1, brake }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    async fn ready(&self, name: &str, program: Arc<dyn Program>) -> Ready {
        let engine = program.instantiate().await.unwrap();
        let log = ActorLog::new(name.parse().unwrap(), 1);
        Ready::Engine { program, engine, version: None, log, module: name.into() }
    }

    async fn apply(&self, start: Vec<(&str, Ready)>, wires: &[(&str, &str)]) {
        let settings = Settings { mailbox: 2, ..Settings::default() };
        let start = start.into_iter().map(|(name, ready)| Start {
            name: name.parse().unwrap(),
            ready,
            settings: settings.clone(),
            state: None,
            was: None,
        });
        let wires = wires.iter().map(|(from, to)| WireDef {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            overflow: None,
        });
        let change =
            Change { start: start.collect(), connect: wires.collect(), ..Change::default() };
        self.system.apply(change).await;
        self.system.open();
    }

    /// Starts a source whose ports `out` and `error` lead to the test.
    async fn source(&mut self, name: &str, config: serde_json::Value) {
        let prepared = prepared(find(name).unwrap(), config, self.folder.path()).unwrap();
        let Prepared::Source(source) = prepared else { panic!("{name} is no source") };
        let (sender, got) = mpsc::channel(1);
        self.got = got;
        let inports = vec![port("in", "", Type::Any)];
        let metadata = Metadata { inports, ..stdout::metadata() };
        let collector = Collector { metadata, got: sender, brake: Arc::clone(&self.brake) };
        let collector = self.ready("test", Arc::new(collector)).await;
        let mut wires = vec![("source.out", "test.in")];
        if source.metadata().outport("error").is_some() {
            wires.push(("source.error", "test.in"));
        }
        let start = vec![("test", collector), ("source", Ready::Source(source))];
        self.apply(start, &wires).await;
    }

    /// Starts a sink by the name `sink`.
    async fn sink(&mut self, name: &str, config: serde_json::Value) {
        let prepared = prepared(find(name).unwrap(), config, self.folder.path()).unwrap();
        let Prepared::Sink(sink) = prepared else { panic!("{name} is no sink") };
        self.program(sink).await;
    }

    async fn program(&mut self, program: Arc<dyn Program>) {
        let sink = self.ready("sink", program).await;
        self.apply(vec![("sink", sink)], &[]).await;
    }

    fn send(&self, data: &'static str) {
        let message = Message::new(Type::Any, data).unwrap();
        self.system.send(&"sink.in".parse().unwrap(), message, None).unwrap();
    }

    /// The data of the next message that the test was given.
    async fn next(&mut self) -> String {
        let message = soon(self.got.recv()).await.expect("the system runs");
        String::from_utf8(message.data().to_vec()).unwrap()
    }

    async fn until(&self, actor: &str, when: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.system.actor(actor).unwrap().watch();
        soon(status.wait_for(when)).await.expect("the actor lives").clone()
    }

    /// Waits until nothing is on its way.
    async fn drained(&self) {
        let soon = Instant::now() + Duration::from_secs(3600);
        assert_eq!(self.system.drained(soon).await, 0);
    }

    /// Ends everything and checks that nothing was lost.
    async fn end(mut self) {
        self.system.close().await;
        self.got.close();
        self.system.kill().await;
        assert!(self.system.books().balanced(), "{:?}", self.system.books());
    }
}

/// Turns a hang into a failure.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    time::timeout(Duration::from_secs(60), future).await.expect("nothing happened for a minute")
}

#[tokio::test(start_paused = true)]
async fn an_interval_ticks_and_skips_what_it_missed() {
    let mut rig = Rig::new();
    rig.source("std:interval", json!({ "every": "1s" })).await;
    let began = Instant::now();
    let first: serde_json::Value = serde_json::from_str(&rig.next().await).unwrap();
    assert_eq!((first["n"].as_u64(), first.get("missed")), (Some(1), None));
    assert_eq!(began.elapsed().as_secs(), 1);
    rig.next().await;
    // The test, the sink, its mailbox and the wire hold what they can; then ticks are missed.
    time::sleep(Duration::from_secs(30)).await;
    let mut missed = 0;
    let mut last = 2;
    while missed == 0 {
        let tick: serde_json::Value = serde_json::from_str(&rig.next().await).unwrap();
        last += 1;
        assert_eq!(tick["n"].as_u64(), Some(last));
        missed = tick["missed"].as_u64().unwrap_or(0);
    }
    assert_eq!(last + missed, began.elapsed().as_secs());
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_become_lines_of_a_file() {
    let mut rig = Rig::new();
    fs::write(rig.path("out"), "\"torn").unwrap();
    rig.sink("std:file-out", json!({ "path": "out" })).await;
    rig.send(r#"{"b":1.0, "a":1e2}"#);
    rig.send("2");
    rig.drained().await;
    let text = fs::read_to_string(rig.path("out")).unwrap();
    assert_eq!(text, "\"torn\n{\"b\":1.0, \"a\":1e2}\n2\n");
    rig.end().await;
}

#[tokio::test]
async fn a_file_is_emptied_where_that_is_asked_for() {
    let mut rig = Rig::new();
    fs::write(rig.path("out"), "old\n").unwrap();
    rig.sink("std:file-out", json!({ "path": "out", "append": false, "what": "message" })).await;
    rig.send("1");
    rig.drained().await;
    let text = fs::read_to_string(rig.path("out")).unwrap();
    assert_eq!(text, "{\"type\":\"Any\",\"data\":1}\n");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_moved_away_is_made_anew() {
    let mut rig = Rig::new();
    rig.sink("std:file-out", json!({ "path": "out" })).await;
    rig.send("1");
    rig.drained().await;
    fs::rename(rig.path("out"), rig.path("out.1")).unwrap();
    time::advance(Duration::from_secs(2)).await;
    rig.send("2");
    rig.drained().await;
    assert_eq!(fs::read_to_string(rig.path("out.1")).unwrap(), "1\n");
    assert_eq!(fs::read_to_string(rig.path("out")).unwrap(), "2\n");
    rig.end().await;
}

#[tokio::test]
async fn a_full_disk_loses_nothing() {
    let mut rig = Rig::new();
    std::os::unix::fs::symlink("/dev/full", rig.path("out")).unwrap();
    rig.sink("std:file-out", json!({ "path": "out" })).await;
    rig.send("1");
    let failed = rig.until("sink", |status| status.state == ActorState::Failed).await;
    let why = failed.why.unwrap();
    assert!(why.contains("No space left") && why.contains("make room"), "{why}");
    rig.send("2");
    fs::remove_file(rig.path("out")).unwrap();
    rig.system.actor("sink").unwrap().retry().await;
    rig.drained().await;
    assert_eq!(fs::read_to_string(rig.path("out")).unwrap(), "1\n2\n");
    rig.end().await;
}

#[tokio::test]
async fn a_missing_folder_is_named_and_waited_for() {
    let mut rig = Rig::new();
    rig.sink("std:file-out", json!({ "path": "folder/out" })).await;
    rig.send("1");
    let failed = rig.until("sink", |status| status.state == ActorState::Failed).await;
    let why = failed.why.unwrap();
    assert!(why.contains("folder/out: No such file") && why.contains("make its folder"), "{why}");
    fs::create_dir(rig.path("folder")).unwrap();
    rig.system.actor("sink").unwrap().retry().await;
    rig.drained().await;
    assert_eq!(fs::read_to_string(rig.path("folder/out")).unwrap(), "1\n");
    rig.end().await;
}

/// `std:stdout` with a pipe in the place of the process's own.
fn screen() -> (io::PipeReader, Arc<dyn Program>) {
    let (reader, writer) = io::pipe().unwrap();
    let screen = stdout::Screen { out: writer.into() };
    let Prepared::Sink(sink) = sink::Sink::prepare(Builtin::Stdout, sink::What::Data, screen)
    else {
        panic!("stdout is a sink")
    };
    (reader, sink)
}

#[tokio::test]
async fn messages_become_lines_on_stdout() {
    let mut rig = Rig::new();
    let (reader, program) = screen();
    rig.program(program).await;
    rig.send("{\"a\" :1}");
    rig.send("2");
    rig.drained().await;
    let mut lines = io::BufReader::new(reader).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "{\"a\" :1}");
    assert_eq!(lines.next().unwrap().unwrap(), "2");
    rig.end().await;
}

#[tokio::test]
async fn a_closed_stdout_keeps_the_message() {
    let mut rig = Rig::new();
    let (reader, program) = screen();
    drop(reader);
    rig.program(program).await;
    rig.send("1");
    let failed = rig.until("sink", |status| status.state == ActorState::Failed).await;
    assert!(failed.why.unwrap().contains("stdout is closed"));
    let counts = rig.system.actor("sink").unwrap().mailbox().counts();
    assert_eq!((counts.queued + counts.in_flight, counts.completed), (1, 0));
    rig.end().await;
}

#[tokio::test]
async fn a_reader_that_is_behind_holds_up_only_the_actor() {
    let mut rig = Rig::new();
    let (reader, program) = screen();
    rig.program(program).await;
    // More than a pipe holds.
    let long: &'static str = Box::leak(format!("\"{}\"", "x".repeat(1 << 20)).into_boxed_str());
    rig.send(long);
    rig.send("2");
    // The test's only thread is free to get here although the line is not out.
    let lines = tokio::task::spawn_blocking(|| {
        let lines = io::BufReader::new(reader).lines();
        lines.take(2).map(Result::unwrap).collect::<Vec<_>>()
    });
    assert_eq!(soon(lines).await.unwrap(), [long, "2"]);
    rig.drained().await;
    rig.end().await;
}
