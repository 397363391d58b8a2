//! What an actor is, and how its turns go: from the daemon's JSON to the actor and back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{Error, Message, Outcome, Port, Turn, host::Host};

/// An actor. The struct is its state, which reflowd keeps between turns; the default is
/// the state that it begins with.
///
/// A field that is added later wants `#[serde(default)]`, since the state of an earlier
/// version does not have it. An actor without state is a unit struct.
pub trait Actor: Default + Serialize + DeserializeOwned {
    /// What the module calls itself; the struct's name, unless another is given.
    const COMPONENT: &str = "";
    /// A sentence for people.
    const DESCRIPTION: &str = "";
    /// A semantic version, such as `1.0.0`, where the module has one.
    const VERSION: Option<&str> = None;
    /// Ports that take messages.
    const INPORTS: &[Port];
    /// Ports that messages leave by.
    const OUTPORTS: &[Port] = &[];
    /// The JSON Schema of the actor's configuration, as JSON, where it takes any.
    const CONFIG_SCHEMA: Option<&str> = None;

    /// Takes one turn.
    ///
    /// # Errors
    /// The message cannot be processed. Nothing of the turn happens: no state, no output.
    fn process(&mut self, turn: &mut Turn<'_>) -> Outcome;

    /// Whether a configuration makes sense, beyond what the schema says.
    /// Asked where the module is exported with `validate_config`.
    #[must_use]
    fn accepts(_config: &Value) -> bool {
        true
    }

    /// The state that follows from the one that another module has left.
    /// Asked where the module is exported with `migrate_state`, of whatever another module
    /// has left but an empty state: by later versions too, which may find their own form.
    /// [`Former::from_version`] tells the modules apart. A state that this makes nothing of
    /// and that is already one of this actor's is taken over as it is.
    ///
    /// # Errors
    /// There is none; the module does not take over.
    fn migrate(former: Former) -> Outcome<Self> {
        Ok(serde_json::from_value(former.state)?)
    }
}

/// What another module has left.
#[derive(Clone, Debug, Deserialize)]
pub struct Former {
    /// The version that it gave itself.
    pub from_version: Option<String>,
    /// Its digest.
    pub from_digest: String,
    /// Its state.
    pub state: Value,
}

/// What a turn begins with.
#[derive(Deserialize)]
pub(crate) struct Context {
    pub(crate) payload: BTreeMap<String, Message>,
    pub(crate) config: Surroundings,
    #[serde(default)]
    pub(crate) state: Value,
    #[serde(default)]
    pub(crate) meta: Value,
}

/// What stays the same for all turns of an actor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    pub(crate) node_id: String,
    #[serde(default)]
    pub(crate) config: Map<String, Value>,
    #[serde(default)]
    pub(crate) resolved_env: BTreeMap<String, String>,
}

/// The metadata of an actor's module, as JSON.
pub(crate) fn metadata<A: Actor>(name: &str) -> String {
    let ports = |ports: &[Port]| -> Vec<Value> {
        let each = ports.iter().map(|port| {
            let Port { name, port_type, description, required } = port;
            json!({"name": name, "port_type": port_type, "description": description, "required": required})
        });
        each.collect()
    };
    let component = if A::COMPONENT.is_empty() { name } else { A::COMPONENT };
    let schema = A::CONFIG_SCHEMA
        .map(|schema| serde_json::from_str::<Value>(schema).expect("CONFIG_SCHEMA is JSON"));
    let mut metadata = json!({
        "component": component,
        "description": A::DESCRIPTION,
        "inports": ports(A::INPORTS),
        "outports": ports(A::OUTPORTS),
        "config_schema": schema,
    });
    if let Some(version) = A::VERSION {
        metadata["version"] = version.into();
    }
    metadata.to_string()
}

/// One turn: a context in, a result out, both JSON.
pub(crate) fn process<A: Actor>(context: &[u8], host: &mut dyn Host) -> Outcome<String> {
    let context: Context = serde_json::from_slice(context)?;
    let before = context.state.clone();
    let mut actor: A = actor_of(&before)?;
    let mut turn = Turn::new(context, A::OUTPORTS, host);
    actor.process(&mut turn)?;
    let after = serde_json::to_value(&actor)?;
    // A state that is left alone costs nothing, and keeps what was set key by key.
    let state = if after == before || !after.is_object() { Value::Null } else { after };
    Ok(json!({"outputs": {}, "state": state}).to_string())
}

/// The actor that a state makes.
pub(crate) fn actor_of<A: Actor>(state: &Value) -> Outcome<A> {
    let first = state.is_null() || state.as_object().is_some_and(Map::is_empty);
    if first {
        return Ok(A::default());
    }
    // A unit struct has no state, whatever was set key by key.
    if serde_json::to_value(A::default())?.is_null() {
        return Ok(A::default());
    }
    A::deserialize(state).map_err(|error| {
        Error::new(format!(
            "the state does not fit this module: {error}; give new fields `#[serde(default)]`, or export `migrate_state`"
        ))
    })
}

/// Answers `validate_config`.
pub(crate) fn accepts<A: Actor>(config: &[u8]) -> Outcome<String> {
    Ok(A::accepts(&serde_json::from_slice(config)?).to_string())
}

/// Answers `migrate_state`.
pub(crate) fn migrate<A: Actor>(former: &[u8]) -> Outcome<String> {
    let former: Former = serde_json::from_slice(former)?;
    let state = former.state.clone();
    if state.as_object().is_some_and(Map::is_empty) {
        return text_of(&A::default());
    }
    match A::migrate(former) {
        Ok(actor) => text_of(&actor),
        // A version that goes on to export it is asked of the state of the one before, too.
        Err(_) if is_own::<A>(&state) => Ok(state.to_string()),
        Err(error) => Err(error),
    }
}

/// The text of an actor's state as its turns leave it.
fn text_of<A: Actor>(actor: &A) -> Outcome<String> {
    let state = serde_json::to_value(actor)?;
    Ok(if state.is_object() { state.to_string() } else { "{}".into() })
}

/// Whether a state is one that this actor leaves, down to the last field.
fn is_own<A: Actor>(state: &Value) -> bool {
    let read = A::deserialize(state).ok();
    read.and_then(|actor| serde_json::to_value(actor).ok()).is_some_and(|again| again == *state)
}
