//! The API as its callers have it: real requests over a real socket, to actors
//! whose code is a few lines here.

use std::{
    collections::BTreeSet, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::OnceLock,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use reflowd_runtime::{
    ActorLog, ActorName, Change, Context, Digest, Effects, Engine, EventKind, Failure, FailureKind,
    GoneBack, InstantiateError, Metadata, Port, PortName, Precondition, Program, Ready, Settings,
    Start, Turn, Type, WireDef, WireEnds,
};
use serde_json::{Value, json};
use tokio::{
    net::UnixStream,
    runtime::Handle,
    sync::{Semaphore, mpsc},
    time::{self, Instant},
};

use super::{listen::ListenError, *};

/// What the code of an actor does with a message.
#[derive(Clone)]
enum Does {
    /// Puts it out.
    Echo,
    /// Puts nothing out.
    Nothing,
    /// Traps.
    Trap,
    /// Puts it out once it is let.
    EchoWhenLet(Arc<Semaphore>),
}

struct Code(Does);

fn metadata() -> &'static Metadata {
    static METADATA: OnceLock<Metadata> = OnceLock::new();
    let port = |name: &str, port_type| Port {
        name: name.parse().unwrap(),
        description: String::new(),
        port_type,
        required: false,
    };
    METADATA.get_or_init(|| Metadata {
        component: "Code".into(),
        description: String::new(),
        inports: vec![port("in", Type::Integer), port("text", Type::String)],
        outports: vec![port("out", Type::Any)],
        config_schema: None,
        version: None,
    })
}

impl Program for Code {
    fn digest(&self) -> Digest {
        Digest::new([7; 32])
    }

    fn metadata(&self) -> &Metadata {
        metadata()
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        async { Ok(Box::new(Self(self.0.clone())) as Box<dyn Engine>) }.boxed()
    }
}

impl Engine for Code {
    fn turn(self: Box<Self>, context: Context, _: Instant) -> BoxFuture<'static, Turn> {
        async move {
            let (_, message) = context.payload.into_iter().next().unwrap();
            let out: PortName = "out".parse().unwrap();
            let mut effects = Effects::default();
            match &self.0 {
                Does::Echo => effects.outputs.push((out, message)),
                Does::Nothing => {}
                Does::Trap => {
                    let kind = FailureKind::Trap("unreachable".into());
                    return Err(Failure { kind, engine: None });
                }
                Does::EchoWhenLet(lets) => {
                    lets.acquire().await.unwrap().forget();
                    effects.outputs.push((out, message));
                }
            }
            Ok((self as Box<dyn Engine>, effects))
        }
        .boxed()
    }
}

/// Looks at no disk.
struct Disk;

impl Reload for Disk {
    fn reload(
        &self,
        options: ReloadOptions,
        _: Precondition,
    ) -> BoxFuture<'_, Result<Report, ReloadError>> {
        let warnings = vec![format!("{options:?}")];
        async move { Ok(Report { warnings, ..Report::default() }) }.boxed()
    }

    fn roll_back(
        &self,
        actor: ActorName,
        _: Option<u64>,
        _: Precondition,
    ) -> BoxFuture<'_, Result<Vec<GoneBack>, RollBackError>> {
        async move { Err(RollBackError::NothingBefore { actor }) }.boxed()
    }

    fn view(&self) -> View {
        View::default()
    }

    fn config_in_force(&self) -> bool {
        true
    }

    fn modules(&self) -> Vec<ModuleView> {
        Vec::new()
    }

    fn passes(&self) -> Option<Passes> {
        None
    }

    fn refusals(&self) -> BTreeMap<String, u64> {
        BTreeMap::from([("invalid-binary".into(), 3)])
    }
}

/// A served API, and somebody who calls it.
struct Rig {
    system: System,
    socket: PathBuf,
    phase: watch::Sender<Phase>,
    stopping: CancellationToken,
    tasks: TaskTracker,
    _folder: tempfile::TempDir,
}

/// What came back.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The last word of the problem's type, of a document that is well-formed.
    #[track_caller]
    fn problem(&self) -> String {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        let document = self.json();
        assert_eq!(document["status"], self.status.as_u16());
        assert!(document["title"].is_string() && document["detail"].is_string(), "{document}");
        let kind = document["type"].as_str().unwrap();
        kind.strip_prefix("urn:reflowd:problem:").unwrap().to_owned()
    }
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

const JSON: (&str, &str) = ("content-type", "application/json");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");

impl Rig {
    async fn start(actors: &[(&str, Does)]) -> Self {
        Self::with(actors, &Settings { mailbox: 4, retries: 0, ..Settings::default() }, &[]).await
    }

    async fn with(actors: &[(&str, Does)], settings: &Settings, wires: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let system = System::new(Handle::current());
        let start = actors.iter().map(|(name, does)| Start {
            name: name.parse().unwrap(),
            ready: Ready::Engine {
                program: Arc::new(Code(does.clone())),
                engine: Box::new(Code(does.clone())),
                version: Some("1.2.3".into()),
                log: ActorLog::new(name.parse().unwrap(), 1),
                module: "code".into(),
            },
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
        system.apply(change).await;
        let (phase, watched) = watch::channel(Phase::Ready);
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let admin = Admin {
            system: system.clone(),
            reloader: Arc::new(Disk),
            states: Arc::new(Snapshots::open(folder.path(), Arc::clone(system.events()))),
            phase: watched,
            stopping: stopping.clone(),
            tasks: tasks.clone(),
            receipts: Receipts::default(),
        };
        let socket = folder.path().join("s");
        let listener = bind_socket(&socket).unwrap();
        tasks.spawn(serve(
            listener,
            router(admin, Via::Socket, Tokens::default()),
            stopping.clone(),
        ));
        Self { system, socket, phase, stopping, tasks, _folder: folder }
    }

    /// Sends a request, and gives the answer's head with its body still coming.
    async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> hyper::Response<Incoming> {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        self.tasks.spawn(async move { _ = connection.await });
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header(header::HOST, "localhost");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(body).unwrap()).await.unwrap()
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Answer {
        let response = self.open(method, path, headers, body);
        let response = soon(response).await;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
        Answer { status, headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], whole("")).await
    }

    async fn post(&self, path: &str, content: (&str, &str), body: &str) -> Answer {
        self.request(Method::POST, path, &[content], whole(body)).await
    }

    /// Returns when nothing is queued or in hand.
    async fn settled(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        assert_eq!(self.system.drained(until).await, 0);
    }

    /// Waits until the actor's turn has begun.
    async fn in_hand(&self, actor: &str) {
        let actor = self.system.actor(actor).unwrap();
        soon(async {
            while actor.mailbox().counts().in_flight == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    fn completed(&self, actor: &str) -> u64 {
        self.system.actor(actor).unwrap().mailbox().counts().completed
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let books = self.system.books();
            assert!(books.deliveries.balanced() && books.wires.balanced(), "{books:?}");
        }
    }
}

fn whole(text: &str) -> Body {
    http_body_util::Full::new(Bytes::copy_from_slice(text.as_bytes()))
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Turns a hang into a failure.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    time::timeout(Duration::from_secs(60), future).await.expect("nothing happened for a minute")
}

fn integers(numbers: std::ops::Range<u32>) -> String {
    numbers.map(|n| format!("{{\"type\":\"Integer\",\"data\":{n}}}\n")).collect()
}

const IN: &str = "/v1/actors/a/ports/in";
const ONE: &str = r#"{"type":"Integer","data":1}"#;

#[tokio::test]
async fn a_message_is_queued_and_has_an_id() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    let answer = rig.post(IN, JSON, ONE).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(answer.json()["id"].as_str().unwrap().len(), 32);
    rig.settled().await;
    assert_eq!(rig.completed("a"), 1);
}

#[tokio::test]
async fn plain_data_is_taken_where_it_is_asked_for() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    let typed = rig.post("/v1/actors/a/ports/in?type=Integer&wait=out", JSON, " 5 ").await;
    assert_eq!(typed.body, r#"{"type":"Integer","data":5}"#);
    let plain = rig.post("/v1/actors/a/ports/text?plain&wait=out", JSON, r#""x""#).await;
    assert_eq!(plain.body, r#"{"type":"String","data":"x"}"#);
    assert_eq!(rig.post(IN, JSON, "5").await.problem(), "bad-message");
}

#[tokio::test]
async fn what_cannot_be_a_message_is_told_why() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    let cases = [
        (IN, JSON, "{", 400, "bad-message"),
        (IN, JSON, r#"{"type":"Int","data":1}"#, 422, "bad-message"),
        (IN, JSON, r#"{"type":"Integer","data":"x"}"#, 422, "bad-message"),
        (IN, JSON, r#"{"type":"Boolean","data":true}"#, 422, "wrong-type"),
        (IN, ("content-type", "text/plain"), ONE, 415, "content-type"),
        (IN, ("accept", "*/*"), ONE, 415, "content-type"),
        ("/v1/actors/a/ports/in?tpye=Integer", JSON, "1", 400, "query"),
        ("/v1/actors/a/ports/in?type=Int", JSON, "1", 422, "bad-message"),
        ("/v1/actors/a/ports/in?block=perhaps", JSON, ONE, 400, "query"),
        ("/v1/actors/a/ports/in?wait=out&timeout=soon", JSON, ONE, 400, "query"),
        ("/v1/actors/a/ports/in?wait=out&timeout=0", JSON, ONE, 400, "query"),
        ("/v1/actors/a/ports/in?wait=out&timeout=3601s", JSON, ONE, 400, "query"),
        ("/v1/reload?timeout=0", JSON, "", 400, "query"),
        ("/v1/actors/a/ports/in?wait=uot", JSON, ONE, 404, "no-port"),
        ("/v1/actors/a/ports/in?wait=out", LINES, ONE, 400, "query"),
        ("/v1/actors/a/ports/on", JSON, ONE, 404, "no-port"),
        ("/v1/actors/b/ports/in", JSON, ONE, 404, "no-actor"),
        ("/v1/nothing", JSON, ONE, 404, "no-route"),
        ("/metrics", JSON, ONE, 405, "no-method"),
    ];
    for (path, content, body, status, kind) in cases {
        let answer = rig.post(path, content, body).await;
        assert_eq!((answer.status.as_u16(), &*answer.problem()), (status, kind), "{path} {body}");
    }
    assert_eq!(rig.system.books().deliveries.accepted_total(), 0);
}

#[tokio::test]
async fn whoever_misspells_is_told_what_there_is() {
    let rig = Rig::start(&[("counter", Does::Echo)]).await;
    let no_actor = rig.get("/v1/actors/countre").await.json();
    assert!(no_actor["detail"].as_str().unwrap().contains("did you mean `counter`?"), "{no_actor}");
    assert_eq!(no_actor["actors"], json!(["counter"]));
    let no_port = rig.post("/v1/actors/counter/ports/on", JSON, ONE).await.json();
    assert_eq!(no_port["ports"], json!(["in", "text"]));
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    let large = format!(r#"{{"type":"String","data":"{}"}}"#, "x".repeat(16 << 20));
    let answer = rig.post("/v1/actors/a/ports/text", JSON, &large).await;
    assert_eq!((answer.status, &*answer.problem()), (StatusCode::PAYLOAD_TOO_LARGE, "too-large"));
    let answer = rig.post("/v1/actors/a/ports/text", LINES, &large).await;
    assert_eq!(answer.problem(), "too-large");
    assert_eq!(answer.json()["line"], 1);
}

#[tokio::test]
async fn a_full_mailbox_is_told_and_keeps_what_it_has() {
    let lets = Arc::new(Semaphore::new(0));
    let rig = Rig::start(&[("a", Does::EchoWhenLet(Arc::clone(&lets)))]).await;
    for _ in 0..4 {
        assert_eq!(rig.post(IN, JSON, ONE).await.status, StatusCode::ACCEPTED);
    }
    let answer = rig.post(IN, JSON, ONE).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.problem(), "mailbox-full");
    assert_eq!(answer.headers[header::RETRY_AFTER], "1");
    lets.add_permits(4);
    rig.settled().await;
    assert_eq!(rig.completed("a"), 4);
}

#[tokio::test]
async fn lines_are_counted() {
    let rig = Rig::start(&[("a", Does::Nothing)]).await;
    let body = format!("{}\n\n{ONE}", integers(0..1_000));
    let answer = rig.post("/v1/actors/a/ports/in?block", LINES, &body).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::ACCEPTED, json!({"accepted": 1_001})));
    rig.settled().await;
    assert_eq!(rig.completed("a"), 1_001);
}

#[tokio::test]
async fn lines_stop_at_the_first_that_is_not_taken() {
    let rig = Rig::start(&[("a", Does::Nothing)]).await;
    let body = format!("{ONE}\n\n{ONE}\nnonsense\n{ONE}\n");
    let answer = rig.post(IN, LINES, &body).await;
    assert_eq!((answer.status, &*answer.problem()), (StatusCode::BAD_REQUEST, "bad-message"));
    assert_eq!((&answer.json()["accepted"], &answer.json()["line"]), (&json!(2), &json!(4)));
    rig.settled().await;
    assert_eq!(rig.completed("a"), 2);
}

#[tokio::test]
async fn lines_stop_at_a_full_mailbox_unless_they_may_wait() {
    let lets = Arc::new(Semaphore::new(0));
    let rig = Rig::start(&[("a", Does::EchoWhenLet(Arc::clone(&lets)))]).await;
    let answer = rig.post(IN, LINES, &integers(0..10)).await;
    assert_eq!((answer.status.as_u16(), &*answer.problem()), (429, "mailbox-full"));
    assert_eq!((&answer.json()["accepted"], &answer.json()["line"]), (&json!(4), &json!(5)));

    let body = integers(10..20);
    let waiting = rig.post("/v1/actors/a/ports/in?block", LINES, &body);
    tokio::pin!(waiting);
    lets.add_permits(14);
    let answer = waiting.await;
    assert_eq!((answer.status.as_u16(), answer.json()), (202, json!({"accepted": 10})));
    rig.settled().await;
    assert_eq!(rig.completed("a"), 14);
}

#[tokio::test]
async fn lines_are_taken_while_the_body_is_still_coming() {
    let rig = Rig::start(&[("a", Does::Nothing)]).await;
    let (pieces, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let answer = rig.request(Method::POST, IN, &[LINES], body.boxed_unsync());
    let feed = async {
        let first = format!("{ONE}\n{{\"type\":");
        pieces.send(Ok(Frame::data(first.into()))).await.unwrap();
        // The first line is worked off before the second is whole.
        let mut events = Box::pin(async {
            while rig.completed("a") < 1 {
                tokio::task::yield_now().await;
            }
        });
        soon(&mut events).await;
        pieces.send(Ok(Frame::data(Bytes::from_static(b"\"Integer\",\"data\":2}")))).await.unwrap();
        drop(pieces);
    };
    let (answer, ()) = tokio::join!(answer, feed);
    assert_eq!(answer.json(), json!({"accepted": 2}));
    rig.settled().await;
}

#[tokio::test]
async fn an_answer_comes_from_the_port_that_is_waited_for() {
    let wires = [("a.out", "b.in")];
    let actors = [("a", Does::Echo), ("b", Does::Echo)];
    let rig = Rig::with(&actors, &Settings::default(), &wires).await;
    for port in ["out", "b.out"] {
        let answer = rig.post(&format!("{IN}?wait={port}"), JSON, ONE).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, ONE.as_bytes()));
        assert_eq!(answer.headers["reflowd-message-id"].len(), 32);
    }
    rig.settled().await;
}

#[tokio::test]
async fn whoever_waits_is_told_when_nothing_can_come() {
    let rig = Rig::start(&[("a", Does::Nothing), ("b", Does::Trap)]).await;
    let answer = rig.post(&format!("{IN}?wait=out"), JSON, ONE).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);

    let answer = rig.post("/v1/actors/b/ports/in?wait=out", JSON, ONE).await;
    assert_eq!((answer.status, &*answer.problem()), (StatusCode::BAD_GATEWAY, "died"));
    assert_eq!(answer.json()["reason"], "trapped: unreachable");
    assert_eq!(answer.json()["id"].as_str().unwrap().len(), 32);
    rig.settled().await;
}

#[tokio::test]
async fn a_message_stays_accepted_when_the_wait_is_over() {
    let lets = Arc::new(Semaphore::new(0));
    let rig = Rig::start(&[("a", Does::EchoWhenLet(Arc::clone(&lets)))]).await;
    let answer = rig.post(&format!("{IN}?wait=out&timeout=1ms"), JSON, ONE).await;
    assert_eq!((answer.status, &*answer.problem()), (StatusCode::GATEWAY_TIMEOUT, "timeout"));
    assert_eq!(answer.json()["id"].as_str().unwrap().len(), 32);
    lets.add_permits(1);
    rig.settled().await;
    assert_eq!(rig.completed("a"), 1);
}

#[tokio::test]
async fn no_messages_are_taken_once_the_system_closes() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    rig.system.close().await;
    rig.phase.send_replace(Phase::Draining);
    let answer = rig.post(IN, JSON, ONE).await;
    assert_eq!((answer.status.as_u16(), &*answer.problem()), (503, "draining"));
    assert_eq!(rig.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rig.get("/livez").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_daemon_is_ready_when_its_actors_are() {
    let rig = Rig::start(&[]).await;
    assert_eq!(rig.get("/readyz").await.status, StatusCode::OK);
    rig.phase.send_replace(Phase::Starting);
    assert_eq!(rig.get("/readyz").await.problem(), "not-ready");
    // What came now, a stop within the start could not save.
    let answer = rig.post("/v1/actors/a/ports/in", JSON, ONE).await;
    assert_eq!((answer.status.as_u16(), &*answer.problem()), (503, "not-ready"));
}

#[tokio::test]
async fn actors_are_listed_with_what_they_run() {
    let rig = Rig::start(&[("b", Does::Echo), ("a", Does::Echo)]).await;
    rig.post(IN, JSON, ONE).await;
    rig.settled().await;
    let actors = rig.get("/v1/actors").await.json();
    assert_eq!((&actors[0]["name"], &actors[1]["name"]), (&json!("a"), &json!("b")));
    assert_eq!((&actors[0]["turns"], &actors[0]["mailbox"]), (&json!(1), &json!(4)));
    let actor = rig.get("/v1/actors/a").await.json();
    assert_eq!(actor["version"], "1.2.3");
    assert_eq!(actor["metadata"]["inports"][0]["name"], "in");
    assert_eq!(actor["books"]["completed"], 1);
}

#[tokio::test]
async fn an_actor_is_paused_and_resumed() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    let word = async |word| {
        let path = format!("/v1/actors/a/{word}");
        let answer = rig.request(Method::POST, &path, &[], whole("")).await;
        assert_eq!(answer.status, StatusCode::OK);
        let told = answer.json();
        assert_eq!((&told["actor"], &told["done"]), (&json!("a"), &json!(true)), "{told}");
        format!("{} {}", told["was"].as_str().unwrap(), told["state"].as_str().unwrap())
    };
    assert_eq!(word("pause").await, "active paused");
    rig.post(IN, JSON, ONE).await;
    assert_eq!(rig.completed("a"), 0);
    assert_eq!(word("resume").await, "paused active");
    assert_eq!(word("retry").await, "active active");
    rig.settled().await;
    assert_eq!(rig.completed("a"), 1);
}

#[tokio::test]
async fn a_word_in_the_middle_of_a_turn_is_answered_before_its_end() {
    let lets = Arc::new(Semaphore::new(0));
    let rig = Rig::start(&[("a", Does::EchoWhenLet(Arc::clone(&lets)))]).await;
    rig.post(IN, JSON, ONE).await;
    rig.in_hand("a").await;
    let told = rig.request(Method::POST, "/v1/actors/a/pause", &[], whole("")).await.json();
    assert_eq!((&told["done"], &told["state"]), (&json!(false), &json!("active")), "{told}");
    lets.add_permits(1);
    let mut status = rig.system.actor("a").unwrap().watch();
    soon(status.wait_for(|status| status.state.name() == "paused")).await.unwrap();
}

#[tokio::test]
async fn a_state_is_set_after_the_turn_in_hand_and_is_on_disk_with_the_answer() {
    let lets = Arc::new(Semaphore::new(0));
    let rig = Rig::start(&[("a", Does::EchoWhenLet(Arc::clone(&lets)))]).await;
    rig.post(IN, JSON, ONE).await;
    rig.in_hand("a").await;
    let path = "/v1/actors/a/state";
    let set = rig.request(Method::PUT, path, &[JSON], whole(" {\"n\": 1}\n"));
    let let_go = async {
        // Nothing but the end of the turn can let the answer come.
        tokio::task::yield_now().await;
        assert_eq!(rig.get(path).await.json()["state"], json!({}));
        lets.add_permits(1);
    };
    let (set, ()) = soon(futures_util::future::join(set, let_go)).await;
    assert_eq!(set.status, StatusCode::OK);
    let set = set.json();
    assert_eq!((&set["bytes"], &set["written"]), (&json!(8), &json!(true)), "{set}");
    assert_eq!(rig.get(path).await.json()["state"], json!({"n": 1}));
    let file = rig.socket.parent().unwrap().join("a.json");
    assert!(std::fs::read_to_string(file).unwrap().contains("\n{\"n\": 1}\n"));
    let plain = rig.request(Method::PUT, path, &[("content-type", "text/plain")], whole("{}"));
    assert_eq!(plain.await.problem(), "content-type");
    let json = [("content-type", "Application/JSON ; charset=utf-8")];
    let set = rig.request(Method::PUT, path, &json, whole("{\"n\": 2}")).await;
    assert_eq!(set.status, StatusCode::OK);
    rig.phase.send_replace(Phase::Starting);
    let unknown = rig.get("/v1/actors/b/state").await;
    assert_eq!(unknown.problem(), "not-ready", "it may come yet");
    let early = rig.request(Method::DELETE, path, &[], whole("")).await;
    assert_eq!(
        (early.status, early.problem()),
        (StatusCode::SERVICE_UNAVAILABLE, "not-ready".into())
    );
}

#[tokio::test]
async fn events_are_told_from_a_number_on_and_followed() {
    let rig = Rig::start(&[("a", Does::Echo), ("b", Does::Echo)]).await;
    let events = rig.get("/v1/events?after=1").await;
    assert_eq!(events.headers[header::CONTENT_TYPE], "application/x-ndjson");
    let event: Value = serde_json::from_slice(&events.body).unwrap();
    assert_eq!((&event["number"], &event["event"]), (&json!(2), &json!("started")));

    let path = "/v1/events?after=2&follow=true";
    let mut following = soon(rig.open(Method::GET, path, &[], whole(""))).await.into_body();
    rig.system.events().record(EventKind::Applied { actor: "a".parse().unwrap() });
    let line = soon(following.frame()).await.unwrap().unwrap().into_data().unwrap();
    let event: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&event["number"], &event["event"]), (&json!(3), &json!("applied")));

    // Whoever follows does not keep the daemon from stopping.
    rig.stopping.cancel();
    assert!(soon(following.frame()).await.is_none());
}

#[tokio::test]
async fn dead_letters_are_listed_with_the_reason() {
    let rig = Rig::start(&[("a", Does::Trap), ("b", Does::Trap)]).await;
    rig.post(IN, JSON, ONE).await;
    rig.settled().await;
    let letter: Value =
        serde_json::from_slice(&rig.get("/v1/dead-letters?actor=a").await.body).unwrap();
    assert_eq!(letter["reason"], "trapped: unreachable");
    assert_eq!(letter["envelope"]["message"], json!({"type": "Integer", "data": 1}));
    assert_eq!(rig.get("/v1/dead-letters?actor=b").await.body, "");
}

#[tokio::test]
async fn a_reload_takes_its_options_from_the_query() {
    let rig = Rig::start(&[]).await;
    let path = "/v1/reload?dry_run&allow_removal=true&force=false&timeout=60s";
    let report = rig.request(Method::POST, path, &[], whole("")).await.json();
    let timeout = Some(Duration::from_secs(60));
    let expected = ReloadOptions { dry_run: true, force: false, allow_removal: true, timeout };
    assert_eq!(report["warnings"][0], format!("{expected:?}"));
}

#[tokio::test]
async fn requests_for_others_and_from_pages_are_refused() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    let cases: [(&[(&str, &str)], StatusCode); 4] = [
        (&[("host", "localhost")], StatusCode::OK),
        (&[("host", "example.com")], StatusCode::FORBIDDEN),
        (&[("host", "localhost"), ("origin", "http://localhost")], StatusCode::OK),
        (&[("host", "localhost"), ("origin", "https://example.com")], StatusCode::FORBIDDEN),
    ];
    for (headers, status) in cases {
        let answer = rig.request(Method::GET, "/v1/actors", headers, whole("")).await;
        assert_eq!(answer.status, status, "{headers:?}");
    }
}

/// The samples of a page, by name and labels.
fn samples(page: &[u8]) -> BTreeMap<String, f64> {
    let page = std::str::from_utf8(page).unwrap();
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let parsed = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    let samples: BTreeMap<_, _> = parsed.collect();
    assert_eq!(samples.len(), page.lines().filter(|line| !line.starts_with('#')).count());
    samples
}

#[tokio::test]
async fn the_books_balance_by_the_metrics() {
    let wires = [("a.out", "b.in"), ("a.out", "c.in")];
    let actors = [("a", Does::Echo), ("b", Does::Echo), ("c", Does::Trap)];
    let settings = Settings { retries: 0, ..Settings::default() };
    let rig = Rig::with(&actors, &settings, &wires).await;
    rig.post("/v1/actors/a/ports/in?block", LINES, &integers(0..8)).await;
    rig.settled().await;
    let before = samples(&rig.get("/metrics").await.body);
    // What is gone still counts.
    let stop = Change {
        stop: vec!["c".parse().unwrap()],
        drain: Duration::from_secs(60),
        cut: vec![WireEnds { from: "a.out".parse().unwrap(), to: "c.in".parse().unwrap() }],
        ..Change::default()
    };
    rig.system.apply(stop).await;
    while rig.system.actor("c").is_some() {
        tokio::task::yield_now().await;
    }

    let page = rig.get("/metrics").await;
    let samples = samples(&page.body);
    let sum_in = |samples: &BTreeMap<String, f64>, name: &str| -> f64 {
        let of_name = samples.iter().filter(|(key, _)| key.split('{').next() == Some(name));
        of_name.map(|(_, value)| value).sum()
    };
    let sum = |name: &str| sum_in(&samples, name);
    for key in before.keys() {
        let name = key.split('{').next().unwrap();
        if ["_total", "_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end)) {
            // Seconds are added up in another order.
            assert!(sum(name) >= sum_in(&before, name) - 1e-9, "{name} has gone back");
        }
    }
    assert_eq!(sum("reflowd_turns_total"), 24.0);
    let accepted = sum("reflowd_messages_accepted_total");
    assert_eq!(accepted, 24.0);
    let dead = sum("reflowd_messages_dead_lettered_total");
    assert_eq!(dead, sum("reflowd_dead_letters_total"));
    let there = sum("reflowd_messages_in_flight") + sum("reflowd_messages_queued");
    let left =
        sum("reflowd_messages_completed_total") + dead + sum("reflowd_messages_dropped_total");
    assert_eq!(accepted, left + there);
    let taken = sum("reflowd_wire_messages_total") + sum("reflowd_wire_refused_total");
    let emitted = sum("reflowd_wire_emitted_total");
    assert_eq!((emitted, taken + sum("reflowd_wire_outbox_messages")), (16.0, 16.0));
    assert_eq!(samples["reflowd_books_balanced"], 1.0);
    assert_eq!(samples["reflowd_turns_total{actor=\"a\",outcome=\"ok\"}"], 8.0);
    assert_eq!(samples["reflowd_turn_seconds_count{actor=\"a\"}"], 8.0);
    assert_eq!(samples["reflowd_turn_seconds_bucket{actor=\"a\",le=\"+Inf\"}"], 8.0);
    assert_eq!(samples["reflowd_modules_refused_total{reason=\"invalid-binary\"}"], 3.0);
    assert_eq!(samples["reflowd_config_in_sync"], 1.0);
}

#[tokio::test]
async fn only_its_owner_can_open_the_socket_and_it_goes_with_the_daemon() {
    let rig = Rig::start(&[]).await;
    let metadata = std::fs::symlink_metadata(&rig.socket).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    rig.stopping.cancel();
    rig.tasks.close();
    soon(rig.tasks.wait()).await;
    assert!(!rig.socket.exists());
}

#[tokio::test]
async fn a_socket_that_was_left_behind_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let _socket = bind_socket(&path).unwrap();
    UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn a_socket_that_somebody_serves_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let first = bind_socket(&path).unwrap();
    let error = bind_socket(&path).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    UnixStream::connect(&path).await.unwrap();
    drop(first);
    bind_socket(&path).unwrap();
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    std::fs::write(&path, "mine").unwrap();
    let error = bind_socket(&path).unwrap_err();
    assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");

    let long = folder.path().join("x".repeat(120));
    let error = bind_socket(&long).unwrap_err();
    assert!(matches!(error, ListenError::PathTooLong { .. }), "{error}");
}

#[tokio::test]
async fn only_loopback_addresses_are_served() {
    let error = bind_address("0.0.0.0:0".parse().unwrap(), true).await.unwrap_err();
    assert!(matches!(error, ListenError::NotLoopback { .. }), "{error}");
    let error = bind_address("192.0.2.1:9670".parse().unwrap(), true).await.unwrap_err();
    assert!(matches!(error, ListenError::NotLoopback { .. }), "{error}");
    bind_address("127.0.0.1:0".parse().unwrap(), true).await.unwrap();
}

/// The routes as the source has them, with their methods.
fn routes() -> BTreeSet<(String, String)> {
    let source = include_str!("../admin.rs").replace(char::is_whitespace, "");
    let mut found = BTreeSet::new();
    for route in source.split(".route(\"").skip(1) {
        let (path, rest) = route.split_once("\",").unwrap();
        let methods = rest.split(".route(").next().unwrap();
        for method in ["get", "post", "put", "delete"] {
            if methods.starts_with(&format!("{method}("))
                || methods.contains(&format!(").{method}("))
            {
                found.insert((path.to_owned(), method.to_owned()));
            }
        }
    }
    found
}

#[test]
fn the_open_api_document_has_every_route_and_no_other() {
    let document: Value = serde_json::from_str(OPEN_API).unwrap();
    let mut described = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            described.insert((path.clone(), method.clone()));
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name), "{name} is there twice");
            assert!(operation["responses"].as_object().unwrap().keys().any(|s| s.starts_with('2')));
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let in_path = parameters.iter().filter(|p| p["$ref"].is_string()).count();
            assert_eq!(in_path, path.matches('{').count(), "{method} {path}");
            let role = operation["x-role"].as_str();
            let method = method.to_uppercase().parse().unwrap();
            let needed = Role::needed(&method, path, None).map(Role::name);
            assert_eq!(role, needed, "{method} {path}");
        }
    }
    assert!(described.len() > 20);
    assert_eq!(described, routes());
    let parameters = &document["paths"]["/v1/dead-letters"]["get"]["parameters"];
    let reason = parameters.as_array().unwrap().iter().find(|of| of["name"] == "reason").unwrap();
    assert_eq!(reason["schema"]["enum"], json!(reflowd_runtime::Reason::CLASSES));
}

#[tokio::test]
async fn of_two_who_have_seen_a_state_one_may_replace_it() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    let path = "/v1/actors/a/state";
    let seen = rig.get(path).await.headers[header::ETAG].to_str().unwrap().to_owned();
    let headers = [("if-match", seen.as_str()), JSON];
    let one = rig.request(Method::PUT, path, &headers, whole(r#"{"n":1}"#)).await;
    assert_eq!(one.status, StatusCode::OK);
    let other = rig.request(Method::PUT, path, &headers, whole(r#"{"n":2}"#)).await;
    assert_eq!(
        (other.status, other.problem()),
        (StatusCode::PRECONDITION_FAILED, "changed".into())
    );
    assert_eq!(&rig.system.actor("a").unwrap().state().text()[..], br#"{"n":1}"#);
}

#[tokio::test]
async fn of_two_who_wait_to_replace_a_state_one_may() {
    let lets = Arc::new(Semaphore::new(0));
    let rig = Rig::start(&[("a", Does::EchoWhenLet(Arc::clone(&lets)))]).await;
    rig.post(IN, JSON, ONE).await;
    rig.in_hand("a").await;
    let path = "/v1/actors/a/state";
    let seen = rig.get(path).await.headers[header::ETAG].to_str().unwrap().to_owned();
    let headers = [("if-match", seen.as_str()), JSON];
    let set = |text: &str| rig.request(Method::PUT, path, &headers, whole(text));
    let let_go = async {
        // Both have come by then, and seen the state that there was.
        for _ in 0..10 {
            rig.get(path).await;
        }
        lets.add_permits(1);
    };
    let (one, two) = (set(r#"{"n":1}"#), set(r#"{"n":2}"#));
    let (one, two, ()) = soon(futures_util::future::join3(one, two, let_go)).await;
    let mut found = [one.status.as_u16(), two.status.as_u16()];
    found.sort_unstable();
    assert_eq!(found, [200, 412]);
}

#[tokio::test]
async fn what_has_changed_meanwhile_is_not_changed_by_who_has_not_seen_it() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    let seen = rig.get("/v1/actors/a").await.headers[header::ETAG].to_str().unwrap().to_owned();
    let path = "/v1/actors/a/pause";
    let headers = [("if-match", "\"another\"")];
    let refused = rig.request(Method::POST, path, &headers, whole("")).await;
    assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(refused.problem(), "changed");
    assert_eq!(rig.system.actor("a").unwrap().status().state.name(), "active");
    // By whatever way of writing its name.
    let headers = [("if-match", "\"another\"")];
    let refused = rig.request(Method::POST, "/v1/actors/%61/pause", &headers, whole("")).await;
    assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED);
    // What has no version cannot be as the caller has seen it.
    let refused = rig.request(Method::DELETE, "/v1/dead-letters?all", &headers, whole("")).await;
    assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED);
    let headers = [("if-match", seen.as_str())];
    let done = rig.request(Method::POST, path, &headers, whole("")).await;
    assert_eq!(done.status, StatusCode::OK);
    assert!(rig.get("/v1/actors").await.headers.contains_key(header::ETAG));
}

#[tokio::test]
async fn what_is_not_there_is_said_before_its_version_is_compared() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    let headers = [("if-match", "\"another\""), JSON];
    for (method, path) in [
        (Method::POST, "/v1/actors/none/pause"),
        (Method::POST, "/v1/actors/none/resume"),
        (Method::POST, "/v1/actors/none/retry"),
        (Method::POST, "/v1/actors/none/rollback"),
        (Method::PUT, "/v1/actors/none/state"),
        (Method::DELETE, "/v1/actors/none/state"),
        (Method::POST, "/v1/actors/none/ports/in"),
    ] {
        let refused = rig.request(method.clone(), path, &headers, whole("{}")).await;
        assert_eq!(
            (refused.status, refused.problem()),
            (StatusCode::NOT_FOUND, "no-actor".into()),
            "{method} {path}"
        );
    }
    // And what is wrong with the request itself.
    let refused = rig.request(Method::POST, "/v1/reload?dry=1", &headers, whole("")).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let refused = rig.request(Method::PUT, "/v1/actors/a/state", &headers, whole("[]")).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn who_has_seen_another_version_changes_nothing_by_any_word() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    for (method, path) in [
        (Method::POST, "/v1/actors/a/pause"),
        (Method::POST, "/v1/actors/a/resume"),
        (Method::POST, "/v1/actors/a/retry"),
        (Method::PUT, "/v1/actors/a/state"),
        (Method::DELETE, "/v1/actors/a/state"),
    ] {
        let seen = match path {
            "/v1/actors/a/state" => rig.get(path).await,
            _ => rig.get("/v1/actors/a").await,
        };
        let seen = seen.headers[header::ETAG].to_str().unwrap().to_owned();
        // A caller that has seen another version, and one that wants any but this one.
        for (condition, tag) in [
            ("if-match", "\"another\""),
            ("if-match", &*format!("W/{seen}")),
            ("if-none-match", &*seen),
            ("if-none-match", "*"),
        ] {
            let headers = [(condition, tag), JSON];
            let refused = rig.request(method.clone(), path, &headers, whole("{}")).await;
            assert_eq!(
                (refused.status, refused.problem()),
                (StatusCode::PRECONDITION_FAILED, "changed".into()),
                "{method} {path} {condition}: {tag}"
            );
        }
    }
    assert_eq!(rig.system.actor("a").unwrap().status().state.name(), "active");
}

#[tokio::test]
async fn who_has_the_current_version_is_not_sent_it_again() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    for path in ["/v1/actors", "/v1/actors/a", "/v1/actors/a/state", "/v1/graph"] {
        let seen = rig.get(path).await.headers[header::ETAG].to_str().unwrap().to_owned();
        for tag in [seen.clone(), format!("\"00\", {seen}"), format!("W/{seen}"), "*".into()] {
            let headers = [("if-none-match", &*tag)];
            let same = rig.request(Method::GET, path, &headers, whole("")).await;
            let found = (same.status, same.body.len(), same.headers.get(header::ETAG).is_some());
            assert_eq!(found, (StatusCode::NOT_MODIFIED, 0, true), "{path} {tag}");
        }
        let headers = [("if-none-match", "\"another\"")];
        let other = rig.request(Method::GET, path, &headers, whole("")).await;
        assert_eq!(other.status, StatusCode::OK, "{path}");
    }
    let headers = [("if-none-match", "*")];
    let gone = rig.request(Method::GET, "/v1/actors/none", &headers, whole("")).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_path_that_cannot_be_read_is_a_problem_document() {
    let rig = Rig::start(&[("a", Does::Echo)]).await;
    for path in [
        "/v1/dead-letters/first",
        "/v1/dead-letters/-1",
        "/v1/dead-letters/18446744073709551616",
        "/v1/dead-letters/%FF",
        "/v1/actors/%FF",
        "/v1/actors/%C3%28/state",
        "/v1/actors/a/ports/%FF/tap",
    ] {
        let refused = rig.get(path).await;
        let found = (refused.status, refused.problem());
        assert_eq!(found, (StatusCode::BAD_REQUEST, "path".into()), "{path}");
    }
}
