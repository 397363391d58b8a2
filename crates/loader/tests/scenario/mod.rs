//! One guest, one actor's settings and some turns, to be seen on every engine.
//!
//! What is seen is told in lines of text: how loading ended, each turn with its
//! outputs and state, each line of the actor's log. Two engines are alike when
//! their lines are. Words of a trap belong to the engine and are left out; words
//! of turn errors and of the guest's own errors do not, and are kept.

#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, Once,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use reflowd_loader::{EngineKind, Limits, Loader};
use reflowd_runtime::{
    ActorLog, Context, Effects, EnginePer, FailureKind, Message, MessageId, Metadata, Module,
    PrepareError, ProgramSpec, State, TurnLimits, Type,
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{Event, Subscriber, field::Visit};
use tracing_subscriber::{
    Layer, filter::Targets, layer::Context as LayerContext, layer::SubscriberExt,
    registry::Registry,
};

use crate::guest::soon;

/// A message's port that stands for the module's first inport.
pub(crate) const FIRST: &str = "*";

/// What one turn is given: port, type and data of each message.
pub(crate) type Given = Vec<(String, Type, String)>;

/// A module, an actor's settings, and turns. The state is carried from turn to turn.
#[derive(Clone)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) module: Bytes,
    pub(crate) config: Value,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) entry_point: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) memory: u64,
    pub(crate) engine_per: EnginePer,
    pub(crate) state: String,
    pub(crate) state_in_context: bool,
    pub(crate) meta: Option<String>,
    pub(crate) limits: TurnLimits,
    pub(crate) timeout: Duration,
    pub(crate) turns: Vec<Given>,
}

impl Scenario {
    /// One turn with null, under limits that are not reached.
    pub(crate) fn new(name: &str, module: Bytes) -> Self {
        Self {
            name: name.into(),
            module,
            config: json!({}),
            env: BTreeMap::new(),
            entry_point: None,
            version: None,
            memory: 100 << 20,
            engine_per: EnginePer::Actor,
            state: "{}".into(),
            state_in_context: true,
            meta: None,
            limits: TurnLimits::default(),
            timeout: Duration::from_secs(60),
            turns: vec![vec![(FIRST.into(), Type::Any, "null".into())]],
        }
    }

    /// The same with these turns, of one message for the first inport each.
    pub(crate) fn turns<'a>(mut self, turns: impl IntoIterator<Item = (Type, &'a str)>) -> Self {
        let given = |(ty, data): (Type, &str)| vec![(FIRST.into(), ty, data.into())];
        self.turns = turns.into_iter().map(given).collect();
        self
    }
}

/// What was seen, in lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(pub(crate) Vec<String>);

impl Seen {
    fn line(&mut self, line: impl fmt::Display) {
        self.0.push(line.to_string());
    }

    /// How each turn ended, or what was refused, in one word each.
    pub(crate) fn classes(&self) -> Vec<String> {
        let word = |line: &String| {
            let (kind, rest) = line.split_once(": ")?;
            let class = || rest.split([' ', ':']).next().unwrap_or_default().to_owned();
            ["turn", "refused", "unprepared", "not started"].contains(&kind).then(class)
        };
        self.0.iter().filter_map(word).collect()
    }

    /// The lines of the actor's log.
    pub(crate) fn log(&self) -> Vec<&str> {
        self.0.iter().filter_map(|line| line.strip_prefix("log: ")).collect()
    }
}

/// The engines that are compared, the reference first.
pub(crate) fn engines() -> Vec<(&'static str, Loader)> {
    let limits = Limits { metadata_timeout: Duration::from_secs(5), ..Limits::default() };
    [("extism", EngineKind::Extism), ("direct", EngineKind::Direct)]
        .map(|(name, engine)| (name, Loader::new(limits).with_engine(engine)))
        .into()
}

/// Runs a scenario on every engine. `case` names its actor and must be unlike others.
pub(crate) async fn see(engines: &[(&'static str, Loader)], scenario: &Scenario) -> Vec<Seen> {
    static CASES: AtomicU64 = AtomicU64::new(0);
    let actor = format!("case-{}", CASES.fetch_add(1, Ordering::Relaxed));
    let mut all = Vec::new();
    for (_, loader) in engines {
        all.push(run(loader, scenario, &actor).await);
    }
    all
}

/// Runs a scenario on every engine and expects the same of each. Gives what was seen.
#[track_caller]
pub(crate) fn alike(
    engines: &[(&'static str, Loader)],
    scenario: &Scenario,
    all: Vec<Seen>,
) -> Seen {
    for ((name, _), seen) in engines.iter().zip(&all).skip(1) {
        assert!(
            *seen == all[0],
            "{}: {} and {name} differ:\n{}",
            scenario.name,
            engines[0].0,
            difference(&all[0], seen)
        );
    }
    all.into_iter().next().expect("there is at least one engine")
}

fn difference(one: &Seen, other: &Seen) -> String {
    let longest = one.0.len().max(other.0.len());
    let line = |seen: &Seen, i: usize| seen.0.get(i).map_or("-".into(), |line| shorten(line));
    (0..longest)
        .filter(|i| one.0.get(*i) != other.0.get(*i))
        .map(|i| format!("  {}\n  {}\n", line(one, i), line(other, i)))
        .collect()
}

fn shorten(line: &str) -> String {
    line.chars().take(600).collect()
}

async fn run(loader: &Loader, scenario: &Scenario, actor: &str) -> Seen {
    listen();
    let mut seen = Seen::default();
    let loaded = soon(loader.load_bytes("guest.wasm", scenario.module.clone())).await;
    match loaded {
        Ok(module) => {
            seen.line(format_args!(
                "module: {} {:?}",
                serde_json::to_string(module.metadata()).expect("metadata is JSON"),
                module.version()
            ));
            turns(&*module, scenario, actor, &mut seen).await;
            // Modules are many here, and each is compiled code.
            loader.forget(&module.digest());
        }
        Err(error) => seen.line(format_args!("refused: {}", error.reason())),
    }
    let lines = LINES.lock().unwrap().remove(actor).unwrap_or_default();
    for line in lines.iter().filter(|line| !HOST_LINES.iter().any(|host| line.starts_with(host))) {
        seen.line(format_args!("log: {line}"));
    }
    seen
}

/// What the host adds when a guest breaks: why and where it did, in each engine's own words.
const HOST_LINES: [&str; 3] = ["ERROR broke: ", "ERROR was stopped at ", "ERROR   in "];

async fn turns(module: &dyn Module, scenario: &Scenario, actor: &str, seen: &mut Seen) {
    let program = match soon(module.prepare(spec(scenario, actor))).await {
        Ok(program) => program,
        Err(error) => return seen.line(format_args!("unprepared: {}", prepare_class(&error))),
    };
    let (mut engine, mut state) = (None, State::new(scenario.state.clone()).unwrap());
    for given in &scenario.turns {
        let ready = match engine.take() {
            Some(ready) => ready,
            None => match soon(program.instantiate()).await {
                Ok(fresh) => fresh,
                Err(_) => return seen.line("not started: engine"),
            },
        };
        let context = context(scenario, module.metadata(), given, &state);
        match soon(ready.turn(context, Instant::now() + scenario.timeout)).await {
            Ok((kept, effects)) => {
                engine = Some(kept);
                seen.line(format_args!("turn: done {}", shown(&effects)));
                state = effects.state.unwrap_or(state);
            }
            Err(failure) => {
                let kept = if failure.engine.is_some() { "kept" } else { "gone" };
                let words = match &failure.kind {
                    FailureKind::Turn(words) | FailureKind::Guest(words) => told(words),
                    _ => "",
                };
                let class = failure.kind.class();
                seen.line(format_args!("turn: {class} {words} (engine {kept})"));
                engine = failure.engine;
            }
        }
    }
}

/// The words of a failure, but for two that each engine says in its own.
fn told(words: &str) -> &str {
    let is_about = |starts: [&str; 2]| starts.iter().any(|start| words.starts_with(start));
    if is_about(["Returned non-zero exit code", "exit code"]) {
        "(a code without a text)"
    } else if is_about(["the guest gave an output of", "an output of"])
        || words.ends_with("; got nothing")
    {
        "(an output that does not exist)"
    } else {
        words
    }
}

fn spec(scenario: &Scenario, actor: &str) -> ProgramSpec {
    let actor: reflowd_runtime::ActorName = actor.parse().unwrap();
    ProgramSpec {
        actor: actor.clone(),
        config: scenario.config.as_object().expect("a config is an object").clone(),
        env: scenario.env.clone(),
        entry_point: scenario.entry_point.clone(),
        memory: scenario.memory,
        allow_hosts: Vec::new(),
        engine_per: scenario.engine_per,
        version: scenario.version.clone(),
        log: ActorLog::new(actor, 1_000_000),
    }
}

fn context(scenario: &Scenario, metadata: &Metadata, given: &Given, state: &State) -> Context {
    let first = || metadata.inports.first().map_or("in".into(), |port| port.name.to_string());
    let payload = given.iter().map(|(port, ty, data)| {
        let port = if port == FIRST { first() } else { port.clone() };
        (port.parse().unwrap(), Message::new(*ty, data.clone()).unwrap())
    });
    Context {
        payload: payload.collect(),
        state: state.clone(),
        message: MessageId::new(),
        trace: None,
        meta: scenario.meta.clone().map(Bytes::from),
        state_in_context: scenario.state_in_context,
        limits: scenario.limits,
        now: None,
        host_memory: None,
    }
}

fn shown(effects: &Effects) -> String {
    let outputs =
        effects.outputs.iter().map(|(port, message)| format!("{port}={}", message.encode()));
    let state = effects.state.as_ref().map(|s| String::from_utf8_lossy(s.text()).into_owned());
    format!("{} | {}", outputs.collect::<Vec<_>>().join(" "), state.as_deref().unwrap_or("-"))
}

fn prepare_class(error: &PrepareError) -> &'static str {
    match error {
        PrepareError::MissingExport { .. } => "missing-export",
        PrepareError::WrongExportType { .. } => "wrong-export-type",
        PrepareError::ConfigRejected { .. } => "config-rejected",
        PrepareError::VersionMismatch { .. } => "version-mismatch",
        PrepareError::MemoryTooSmall { .. } => "memory-too-small",
        PrepareError::Instantiate(_) => "instantiate",
        PrepareError::Broke(_) => "broke",
    }
}

/// Lines that guests have logged, by actor.
static LINES: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let guests = Targets::new().with_target("guest", tracing::Level::TRACE);
        let subscriber = Registry::default().with(Listener.with_filter(guests));
        tracing::subscriber::set_global_default(subscriber).expect("nobody else listens");
    });
}

/// Takes what guests log.
struct Listener;

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{} {}", event.metadata().level(), line.text);
        LINES.lock().unwrap().entry(line.actor).or_default().push(text);
    }
}

#[derive(Default)]
struct Line {
    actor: String,
    text: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        match field.name() {
            "actor" => self.actor = format!("{value:?}"),
            "message" => self.text = format!("{value:?}"),
            _ => {}
        }
    }
}
