//! A bench on which an actor is tried without WebAssembly.
//!
//! The same JSON goes in and out as with the daemon, so that what works here fits there.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    Actor, Error, Level, Message, Outcome, Type,
    actor::{self, Surroundings},
    host::Host,
};

/// An actor on a bench: its state goes on from turn to turn, and all that it sends and
/// logs is kept. A turn that fails leaves nothing behind.
///
/// ```
/// # use reflowd_guest::{Actor, Bench, Outcome, Port, Turn};
/// #[derive(Default, serde::Serialize, serde::Deserialize)]
/// struct Shout;
///
/// impl Actor for Shout {
///     const INPORTS: &[Port] = &[Port::string("in")];
///     const OUTPORTS: &[Port] = &[Port::string("out")];
///     fn process(&mut self, turn: &mut Turn<'_>) -> Outcome {
///         let text: String = turn.take("in")?;
///         turn.info("heard something");
///         turn.send("out", &text.to_uppercase())
///     }
/// }
///
/// let mut bench = Bench::<Shout>::new();
/// bench.process("in", "hello").unwrap();
/// assert_eq!(bench.sent::<String>("out"), ["HELLO"]);
/// assert_eq!(bench.lines()[0].text, "heard something");
/// let error = bench.process("in", 7).unwrap_err();
/// assert!(error.to_string().starts_with("`in`: invalid type"));
/// ```
pub struct Bench<A> {
    around: Surroundings,
    state: Value,
    sent: Vec<(String, Message)>,
    lines: Vec<Line>,
    actor: std::marker::PhantomData<A>,
}

/// A line of an actor's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How much it matters.
    pub level: Level,
    /// What it says.
    pub text: String,
}

/// What one turn does, until it has succeeded.
struct Pending {
    state: Map<String, Value>,
    /// Whether a value of the state was set by its key.
    keyed: bool,
    sent: Vec<(String, Message)>,
    lines: Vec<Line>,
}

impl Host for Pending {
    fn send(&mut self, outputs: String) {
        let outputs: BTreeMap<String, Message> =
            serde_json::from_str(&outputs).expect("a turn sends messages");
        self.sent.extend(outputs);
    }

    fn state(&mut self, key: &str) -> String {
        self.state.get(key).unwrap_or(&Value::Null).to_string()
    }

    fn set_state(&mut self, key: &str, value: String) {
        let value = serde_json::from_str(&value).expect("a turn sets JSON");
        self.state.insert(key.into(), value);
        self.keyed = true;
    }

    fn log(&mut self, level: Level, text: &str) {
        self.lines.push(Line { level, text: text.into() });
    }
}

impl<A: Actor> Bench<A> {
    /// An actor that has taken no turn yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a bench is made, and has nothing by itself")]
    pub fn new() -> Self {
        Self {
            around: Surroundings { node_id: "bench".into(), ..Surroundings::default() },
            state: json!({}),
            sent: Vec::new(),
            lines: Vec::new(),
            actor: std::marker::PhantomData,
        }
    }

    /// The same, with a configuration, such as `json!({"step": 2})`.
    ///
    /// # Panics
    /// It is no object.
    #[must_use]
    pub fn with_config(mut self, config: Value) -> Self {
        let Value::Object(config) = config else { panic!("a configuration is an object") };
        self.around.config = config;
        self
    }

    /// The same, with a variable in its environment.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.around.resolved_env.insert(name.into(), value.into());
        self
    }

    /// The same, with a state that an earlier turn has left.
    ///
    /// # Panics
    /// The state cannot be written as JSON.
    #[must_use]
    pub fn with_state(mut self, state: &impl Serialize) -> Self {
        self.state = serde_json::to_value(state).expect("a state is JSON");
        self
    }

    /// Takes a turn with one value, as a message of the type that the port declares.
    ///
    /// # Errors
    /// What the actor says; or the value does not fit the port, as the daemon would find.
    ///
    /// # Panics
    /// The value cannot be written as JSON.
    pub fn process(&mut self, port: &str, value: impl Serialize) -> Outcome {
        let data = serde_json::to_value(value).expect("a message is JSON");
        let declared = A::INPORTS.iter().find(|declared| declared.name == port);
        let Some(declared) = declared else {
            return Err(Error::new(format!("the actor has no inport `{port}`")));
        };
        let ty = if declared.port_type == Type::Any { Type::of(&data) } else { declared.port_type };
        self.join(&[(port, Message { ty, data })])
    }

    /// Takes a turn with several messages, as an actor that joins does.
    ///
    /// # Errors
    /// What the actor says.
    pub fn join(&mut self, payload: &[(&str, Message)]) -> Outcome {
        let payload: BTreeMap<_, _> = payload.iter().cloned().collect();
        let context = json!({"payload": payload, "config": self.around, "state": self.state});
        let state = self.state.as_object().cloned().unwrap_or_default();
        let mut pending = Pending { state, keyed: false, sent: Vec::new(), lines: Vec::new() };
        let result = actor::process::<A>(context.to_string().as_bytes(), &mut pending);
        self.lines.append(&mut pending.lines);
        let result: Value = serde_json::from_str(&result?).expect("a result is JSON");
        self.sent.append(&mut pending.sent);
        match &result["state"] {
            Value::Null if pending.keyed => self.state = Value::Object(pending.state),
            Value::Null => {}
            state => self.state = state.clone(),
        }
        Ok(())
    }

    /// All that was put out by `port` since the last time that somebody asked.
    ///
    /// # Panics
    /// Something is no `T`.
    pub fn sent<T: DeserializeOwned>(&mut self, port: &str) -> Vec<T> {
        let (of_port, others) =
            std::mem::take(&mut self.sent).into_iter().partition(|(name, _)| name == port);
        self.sent = others;
        let of_port: Vec<(String, Message)> = of_port;
        let value = |(_, message): (String, Message)| {
            serde_json::from_value(message.data).expect("what was sent has the type asked for")
        };
        of_port.into_iter().map(value).collect()
    }

    /// All messages that were put out and not asked for yet, in their order.
    #[must_use]
    pub fn messages(&self) -> &[(String, Message)] {
        &self.sent
    }

    /// The log, from the first turn on.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The actor as its state makes it.
    ///
    /// # Panics
    /// The state does not fit the actor.
    #[must_use]
    pub fn state(&self) -> A {
        actor::actor_of(&self.state).expect("the state fits the actor")
    }

    /// The state as anything that it fits.
    ///
    /// # Panics
    /// It does not fit.
    #[must_use]
    pub fn into_state<S: DeserializeOwned>(self) -> S {
        serde_json::from_value(self.state).expect("the state fits")
    }

    /// What the module says of itself.
    ///
    /// # Panics
    /// The schema of the configuration is no JSON.
    #[must_use]
    pub fn metadata(&self) -> Value {
        let name = std::any::type_name::<A>().rsplit("::").next().unwrap_or_default();
        serde_json::from_str(&actor::metadata::<A>(name)).expect("metadata is JSON")
    }

    /// Whether the actor would take this configuration.
    ///
    /// # Errors
    /// It is no JSON, or the actor says why not.
    pub fn accepts(&self, config: &Value) -> Outcome<bool> {
        let answer = actor::accepts::<A>(config.to_string().as_bytes())?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// The state that the actor makes of what another module has left.
    ///
    /// # Errors
    /// It makes none of it.
    pub fn migrate(&self, version: Option<&str>, state: &Value) -> Outcome<Value> {
        let former = json!({"from_version": version, "from_digest": "", "state": state});
        let answer = actor::migrate::<A>(former.to_string().as_bytes())?;
        Ok(serde_json::from_str(&answer)?)
    }
}
