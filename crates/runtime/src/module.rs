//! What the runtime asks of the code that an actor runs.
//!
//! Three traits, from the general to the particular: a [`Module`] is code with
//! metadata; a [`Program`] is a module made ready for one actor's settings; an
//! [`Engine`] is one running instance. The runtime knows nothing else about
//! them, WebAssembly least of all: connectors and test fakes implement the same
//! traits as the loader.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    ActorLog, ActorName, HostMemoryMeter, Message, MessageId, PortName, Settings, TurnTrace, Type,
    panic::Panic,
    state_index::{Entries, Index, look_through},
    strict_json::{self, JsonFault, MAX_DEPTH},
};

/// Bytes of linear memory for an engine of an actor that says nothing of it.
const MEMORY: u64 = 100 << 20;

/// Loaded, checked code. Shared by every actor that runs it.
pub trait Module: Send + Sync {
    /// What identifies the code.
    fn digest(&self) -> Digest;

    /// What the module says of itself.
    fn metadata(&self) -> &Metadata;

    /// The semantic version that the module gives itself, where it does.
    fn version(&self) -> Option<&str>;

    /// Whether its programs migrate the state of the module before.
    fn migrates_state(&self) -> bool {
        false
    }

    /// Makes the module ready for one actor: checks the actor's configuration
    /// against the module and does whatever is slow and needed only once.
    ///
    /// May take long and must not be awaited by an actor's task.
    fn prepare(&self, spec: ProgramSpec) -> BoxFuture<'_, Result<Arc<dyn Program>, PrepareError>>;
}

/// A module made ready for one actor. Makes that actor's engines, one at a time.
pub trait Program: Send + Sync {
    /// What the program was made from.
    fn digest(&self) -> Digest;

    /// The ports of the module that it was made from.
    fn metadata(&self) -> &Metadata;

    /// Whether its turns do something outside that cannot be undone, so that a stop waits
    /// for the end of one instead of cancelling it.
    fn acts_outside(&self) -> bool {
        false
    }

    /// A new engine. At most one engine of a program is in use at a time.
    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>>;

    /// Whether it makes another state of the one that the module before it has left.
    fn migrates_state(&self) -> bool {
        false
    }

    /// Makes that state. Asks an engine of its own, so that nothing of it is left over.
    ///
    /// May take long and must not be awaited by an actor's task.
    fn migrate_state(&self, left: LeftState) -> BoxFuture<'_, Result<State, MigrateError>> {
        Box::pin(async move { Ok(left.state) })
    }
}

/// The state of an actor, and what has left it.
#[derive(Clone, Debug)]
pub struct LeftState {
    /// The state.
    pub state: State,
    /// The module that ran.
    pub digest: Digest,
    /// The version that it gave itself.
    pub version: Option<String>,
    /// Bytes that the next state may have.
    pub limit: u64,
}

/// The state cannot be made another one; the module does not take over.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MigrateError {
    /// The module made none.
    #[error("`migrate_state` {why}")]
    Failed {
        /// What came instead of a state.
        why: String,
    },
    /// The host broke over it, which says nothing of the module.
    #[error(transparent)]
    Broke(#[from] Panic),
}

/// One running instance of a module.
pub trait Engine: Send {
    /// Takes one turn: the context in, the effects out.
    ///
    /// The engine goes into the turn, and only a turn that left it intact gives
    /// it back, so nobody can call a broken one. Effects are a value: nothing
    /// has happened until the caller commits them. (Messages that the guest
    /// sends through [`Context::now`] are the exception that its name says.)
    fn turn(self: Box<Self>, context: Context, deadline: Instant) -> BoxFuture<'static, Turn>;

    /// Bytes of memory that the guest holds now.
    fn memory_bytes(&self) -> u64 {
        0
    }
}

/// How a turn ended.
pub type Turn = Result<(Box<dyn Engine>, Effects), Failure>;

/// What a guest is told at the beginning of a turn.
#[derive(Clone)]
pub struct Context {
    /// One message for a turn of its own, or one per port for a join.
    pub payload: Vec<(PortName, Message)>,
    /// The actor's state.
    pub state: State,
    /// The delivery that the turn is about, the same in each attempt; the first of a join.
    pub message: MessageId,
    /// The trace that what the turn asks of others belongs to.
    pub trace: Option<TurnTrace>,
    /// What is known of the message's way, as JSON; given to the guest as `meta` where it asks for it.
    pub meta: Option<Bytes>,
    /// Whether the guest sees the state in its context, or only through `__get_state`.
    pub state_in_context: bool,
    /// Limits of this turn.
    pub limits: TurnLimits,
    /// Takes what `__send_output` gives at once, where the actor sends `now`.
    pub now: Option<Arc<dyn SendNow>>,
    /// Counts what the host holds for the turn, where somebody wants to know.
    pub host_memory: Option<Arc<HostMemoryMeter>>,
}

/// Sizes that a turn must keep, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnLimits {
    /// Encoded outputs of one turn, together.
    pub output: u64,
    /// The encoded state.
    pub state: u64,
    /// Memory that the host holds for the actor, including the state and the turn's outputs.
    pub host_memory: u64,
}

impl Default for TurnLimits {
    fn default() -> Self {
        let Settings { output, state_size, host_memory, .. } = Settings::default();
        Self { output, state: state_size, host_memory }
    }
}

/// Takes a message out of a turn that has not ended. Never waits.
pub trait SendNow: Send + Sync {
    /// Puts `message` on the wires of `port`.
    fn send(&self, port: PortName, message: Message);
}

/// An actor's state: one JSON object, as strict JSON text.
#[derive(Clone)]
pub struct State {
    text: Bytes,
    /// Where its keys stand, once somebody has asked for one. None for a small text, which
    /// is gone through at once.
    index: Option<Arc<OnceLock<Option<Index>>>>,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for State {}

/// Bytes of a state from which on its keys get an index.
const INDEXED: usize = 4 << 10;

/// The text is not a state.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StateError {
    /// It is not a JSON object.
    #[error("a state is a JSON object, not {0}")]
    NoObject(String),
    /// It is not strict JSON.
    #[error(transparent)]
    Fault(#[from] JsonFault),
}

/// Bytes that a state may keep alive beside its own, and an eighth of its own.
const MAX_BESIDE_STATE: usize = 512;

/// Some JSON object. Reading one keeps nothing of it.
struct AnyObject;

impl<'de> Deserialize<'de> for AnyObject {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> serde::de::Visitor<'de> for ObjectVisitor {
            type Value = AnyObject;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: serde::de::MapAccess<'de>>(
                self,
                mut map: M,
            ) -> Result<AnyObject, M::Error> {
                while let Some((_, _)) = map.next_entry::<AnyKey, &serde_json::value::RawValue>()? {
                }
                Ok(AnyObject)
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// Some key of a JSON object that is a string of Unicode.
struct AnyKey;

impl<'de> Deserialize<'de> for AnyKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl serde::de::Visitor<'_> for KeyVisitor {
            type Value = AnyKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, _text: &str) -> Result<AnyKey, E> {
                Ok(AnyKey)
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

impl State {
    /// A state from its JSON text.
    ///
    /// # Errors
    /// The text is not a JSON object, or not strict JSON.
    pub fn new(text: impl Into<Bytes>) -> Result<Self, StateError> {
        let state = Self::kept(text)?;
        // Each value may be as deep as one set by `__set_state`.
        strict_json::check_to(&state.text, MAX_DEPTH + 1)?;
        Ok(state)
    }

    /// Like [`State::new`], for a state that the daemon itself has stored: what an earlier
    /// version accepted is restored even if it is not strict JSON.
    ///
    /// # Errors
    /// The text is not a JSON object.
    pub fn kept(text: impl Into<Bytes>) -> Result<Self, StateError> {
        let text: Bytes = text.into();
        // An error of the parser would hold all of a string.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Err(StateError::NoObject(crate::message::excerpt(&text)));
        }
        match serde_json::from_slice(&text) {
            Ok(AnyObject) => Ok(Self::of(text)),
            Err(_) => Err(StateError::NoObject(crate::message::excerpt(&text))),
        }
    }

    /// A state from `part`, its JSON text, which lies within `whole`.
    ///
    /// It shares the memory of `whole` only where next to nothing else is in there: a
    /// state lives for long.
    ///
    /// # Errors
    /// The text is not a JSON object.
    ///
    /// # Panics
    /// If `part` does not lie within `whole`.
    pub fn from_slice_of(whole: &Bytes, part: &[u8]) -> Result<Self, StateError> {
        let text = if whole.len() - part.len() > part.len() / 8 + MAX_BESIDE_STATE {
            Bytes::copy_from_slice(part)
        } else {
            whole.slice_ref(part)
        };
        Self::new(text)
    }

    fn of(text: Bytes) -> Self {
        let index = (text.len() > INDEXED).then(Arc::default);
        Self { text, index }
    }

    /// The JSON text.
    #[must_use]
    pub fn text(&self) -> &Bytes {
        &self.text
    }

    /// Where the value of a key stands in the text. In time that does not grow with the
    /// text, once [`State::index`] was called.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<Range<usize>> {
        let index = self.index.as_ref().and_then(|index| index.get()?.as_ref());
        let entry = match index {
            Some(index) => index.find(&self.text, key),
            None => look_through(&self.text, key),
        };
        entry.map(|entry| entry.value)
    }

    /// Whether its keys have an index, or it is too short to need one.
    #[must_use]
    pub fn is_indexed(&self) -> bool {
        self.index.as_ref().is_none_or(|index| index.get().is_some())
    }

    /// Bytes that an index of its keys would take which is not there yet. Goes through the
    /// text if so.
    #[must_use]
    pub fn missing_index(&self) -> Option<u64> {
        (!self.is_indexed()).then(|| Index::cost(Entries::of(&self.text).count()))
    }

    /// Makes the index of its keys, for this state and all of its clones.
    pub fn index(&self) {
        if let Some(index) = &self.index {
            let entries = || Entries::of(&self.text).count();
            index.get_or_init(|| Index::new(&self.text, entries()));
        }
    }

    /// Bytes that it takes, its index included.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let index = self.index.as_ref().and_then(|index| index.get()?.as_ref());
        self.text.len() as u64 + index.map_or(0, Index::bytes)
    }

    /// The text with other values for some keys, and further entries behind them. Each of
    /// `replaced` is a place that [`State::find`] gave, in the order of the text. Values are
    /// JSON; about `size` bytes come of it.
    #[must_use]
    pub fn edited<'v>(
        &self,
        replaced: &[(Range<usize>, &'v [u8])],
        added: impl IntoIterator<Item = (&'v str, &'v [u8])>,
        size: usize,
    ) -> Self {
        let end = self.text.iter().rposition(|byte| *byte == b'}').expect("a state is an object");
        let mut out = Vec::with_capacity(size);
        let mut from = 0;
        for (place, value) in replaced {
            out.extend_from_slice(&self.text[from..place.start]);
            out.extend_from_slice(value);
            from = place.end;
        }
        out.extend_from_slice(&self.text[from..end]);
        let mut is_first = Entries::of(&self.text).next().is_none();
        for (key, value) in added {
            if !std::mem::replace(&mut is_first, false) {
                out.push(b',');
            }
            serde_json::to_writer(&mut out, key).expect("a vector takes every string");
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.push(b'}');
        Self::of(out.into())
    }
}

impl Default for State {
    fn default() -> Self {
        Self::of(Bytes::from_static(b"{}"))
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::message::excerpt(&self.text))
    }
}

/// What a successful turn wants to happen. The runtime commits it as one.
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages for outports, in the order in which the guest gave them.
    pub outputs: Vec<(PortName, Message)>,
    /// The new state, where the turn set one.
    pub state: Option<State>,
}

/// A turn that did not succeed.
pub struct Failure {
    /// What happened.
    pub kind: FailureKind,
    /// The engine, where it is intact.
    pub engine: Option<Box<dyn Engine>>,
}

/// A time as people read it: what is below a millisecond says nothing of a turn.
fn to_the_millisecond(time: Duration) -> Duration {
    let below = Duration::from_nanos(u64::from(time.subsec_nanos() % 1_000_000));
    if time < Duration::from_millis(1) { time } else { time - below }
}

/// What happened in a turn that did not succeed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FailureKind {
    /// The guest trapped, panicked or ran out of memory.
    #[error("trapped: {0}")]
    Trap(String),
    /// The turn ran into its deadline.
    #[error("timed out after {:?}", to_the_millisecond(*.0))]
    Timeout(Duration),
    /// The guest answered with something that is no result, or over a limit.
    #[error("{0}")]
    Turn(String),
    /// The guest answered with an error of its own.
    #[error("the guest returned an error: {0}")]
    Guest(String),
    /// What a connector talks to is not there. The message is kept and tried again.
    #[error("{0}")]
    Unavailable(Setback),
    /// What a connector talks to is there and could not do its part this time.
    #[error("{0}")]
    Remote(Setback),
    /// The other side of a connector has refused the message.
    #[error("{0}")]
    Refused(String),
}

/// A connector's failure to deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setback {
    /// The failure, and the connector.
    pub why: String,
    /// The pause that the other side has requested.
    pub pause: Option<Duration>,
}

impl fmt::Display for Setback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl<T: Into<String>> From<T> for Setback {
    fn from(why: T) -> Self {
        Self { why: why.into(), pause: None }
    }
}

impl FailureKind {
    /// One word for metrics, events and dead letters.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Trap(_) => "trap",
            Self::Timeout(_) => "timeout",
            Self::Turn(_) => "turn-error",
            Self::Guest(_) => "guest-error",
            Self::Unavailable(_) => "unavailable",
            Self::Remote(_) => "remote",
            Self::Refused(_) => "refused",
        }
    }

    /// The pause that the other side of a connector has asked for.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        match self {
            Self::Unavailable(setback) | Self::Remote(setback) => setback.pause,
            _ => None,
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("kind", &self.kind)
            .field("engine", &self.engine.is_some())
            .finish()
    }
}

/// The SHA-256 of a module's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest with those bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first twelve hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

/// Not 64 hexadecimal digits.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is no SHA-256 digest: 64 hexadecimal digits")]
pub struct DigestError(String);

impl std::str::FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = || DigestError(text.chars().take(80).collect());
        if text.len() != 64 || !text.is_ascii() {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a module says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The name that the module gives itself. Not empty.
    pub component: String,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Ports that take messages.
    pub inports: Vec<Port>,
    /// Ports that messages leave by.
    pub outports: Vec<Port>,
    /// A JSON Schema that an actor's configuration must satisfy.
    #[serde(default)]
    pub config_schema: Option<serde_json::Value>,
    /// A version, for modules that do not export `get_version`.
    #[serde(default)]
    pub version: Option<String>,
}

impl Metadata {
    /// The inport of that name.
    #[must_use]
    pub fn inport(&self, name: &str) -> Option<&Port> {
        self.inports.iter().find(|port| port.name.as_str() == name)
    }

    /// The outport of that name.
    #[must_use]
    pub fn outport(&self, name: &str) -> Option<&Port> {
        self.outports.iter().find(|port| port.name.as_str() == name)
    }
}

/// A port as metadata declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Its name, unique among the ports of its direction.
    pub name: PortName,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// The type of its messages.
    pub port_type: Type,
    /// Whether a join waits for it.
    #[serde(default)]
    pub required: bool,
}

/// All that makes one generation of an actor differ from another, but the module.
#[derive(Clone)]
pub struct ProgramSpec {
    /// The actor: `config.node_id` in the guest's context.
    pub actor: ActorName,
    /// The actor's configuration, a JSON object.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// The actor's environment, resolved: `config.resolved_env` in the context.
    pub env: BTreeMap<String, String>,
    /// The export that takes turns; `process` where it is not set.
    pub entry_point: Option<String>,
    /// Bytes of linear memory that one engine may have.
    pub memory: u64,
    /// Hosts that the guest may reach by HTTP.
    pub allow_hosts: Vec<String>,
    /// How long an engine lives.
    pub engine_per: EnginePer,
    /// The version that the module must have, as a semantic version requirement.
    pub version: Option<String>,
    /// Where the guest's log lines go.
    pub log: ActorLog,
}

impl ProgramSpec {
    /// What an actor asks for that nobody has configured.
    #[must_use]
    pub fn new(actor: ActorName) -> Self {
        Self {
            log: ActorLog::new(actor.clone(), Settings::default().log_rate),
            actor,
            config: serde_json::Map::new(),
            env: BTreeMap::new(),
            entry_point: None,
            memory: MEMORY,
            allow_hosts: Vec::new(),
            engine_per: EnginePer::default(),
            version: None,
        }
    }
}

/// How long an engine lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnginePer {
    /// As long as the generation, unless it breaks.
    #[default]
    Actor,
    /// A new one for every message, as Reflow does it.
    Message,
}

/// A module cannot be made ready for an actor.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The module does not export the function that is to take turns.
    #[error("the module does not export `{name}`; it exports {exports}")]
    MissingExport {
        /// The export that was looked for.
        name: String,
        /// What it exports.
        exports: String,
    },
    /// The export has parameters or another result than one `i32`.
    #[error("the export `{name}` has type {found}; a turn needs () -> i32")]
    WrongExportType {
        /// The export.
        name: String,
        /// The type that it has.
        found: String,
    },
    /// The configuration does not satisfy the module.
    #[error("the module refuses the actor's config: {why}")]
    ConfigRejected {
        /// Each violation of the schema, or that `validate_config` said no.
        why: String,
    },
    /// The module is of another version than the actor asks for.
    #[error("the module's version is {found}, and the actor asks for {wanted}")]
    VersionMismatch {
        /// The requirement.
        wanted: String,
        /// The version that the module has, or `none`.
        found: String,
    },
    /// The declared memory is over the actor's limit.
    #[error(
        "the module needs {needed} bytes of memory and tables from the start, and `memory` allows {limit}; raise `memory`"
    )]
    MemoryTooSmall {
        /// Bytes that the module declares.
        needed: u64,
        /// Bytes that the actor allows.
        limit: u64,
    },
    /// The code cannot be made ready or not be started.
    #[error(transparent)]
    Instantiate(#[from] InstantiateError),
    /// The host broke over it, which says nothing of the module.
    #[error(transparent)]
    Broke(#[from] Panic),
}

/// An engine cannot be made.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the module cannot be started: {why}")]
pub struct InstantiateError {
    /// What the engine said.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_is_told_to_the_millisecond() {
        for (nanos, told) in [
            (30_000_000_000, "timed out after 30s"),
            (1_012_990_576, "timed out after 1.012s"),
            (250_999_999, "timed out after 250ms"),
            (999_999, "timed out after 999.999µs"),
        ] {
            assert_eq!(FailureKind::Timeout(Duration::from_nanos(nanos)).to_string(), told);
        }
    }
}
