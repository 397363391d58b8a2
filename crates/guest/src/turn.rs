//! One turn, as an actor sees it.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Error, Message, Outcome, Port, Type,
    actor::{Context, Surroundings},
    host::Host,
    message::read,
};

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For who looks at every step.
    Trace,
    /// For who looks for a mistake.
    Debug,
    /// What happened.
    Info,
    /// What somebody may want to look at.
    Warn,
    /// What went wrong.
    Error,
}

/// The messages that a turn takes, and what it can do with the world.
pub struct Turn<'h> {
    payload: BTreeMap<String, Message>,
    around: Surroundings,
    meta: Value,
    outports: &'static [Port],
    host: &'h mut dyn Host,
}

impl<'h> Turn<'h> {
    pub(crate) fn new(context: Context, outports: &'static [Port], host: &'h mut dyn Host) -> Self {
        let Context { payload, config, state: _, meta } = context;
        Self { payload, around: config, meta, outports, host }
    }

    /// The value that came by `port`.
    ///
    /// # Errors
    /// None came, or it is no `T`.
    pub fn take<T: DeserializeOwned>(&self, port: &str) -> Outcome<T> {
        self.get(port)?.ok_or_else(|| Error::new(format!("no message came by `{port}`")))
    }

    /// The value that came by `port`, if one did.
    ///
    /// # Errors
    /// It is no `T`.
    pub fn get<T: DeserializeOwned>(&self, port: &str) -> Outcome<Option<T>> {
        let Some(message) = self.payload.get(port) else { return Ok(None) };
        read(&message.data).map(Some).map_err(|error| Error::new(format!("`{port}`: {error}")))
    }

    /// The message that came by `port`, with its type.
    #[must_use]
    pub fn message(&self, port: &str) -> Option<&Message> {
        self.payload.get(port)
    }

    /// The ports by which messages came: one, unless the actor joins.
    pub fn ports(&self) -> impl Iterator<Item = &str> {
        self.payload.keys().map(String::as_str)
    }

    /// Puts a value out by `port`, as a message of the type that the port declares. It
    /// leaves when the turn has succeeded (with `send = "now"`, at once).
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn send(&mut self, port: &str, value: &(impl Serialize + ?Sized)) -> Outcome {
        let data = serde_json::to_value(value)?;
        let declared = self.outports.iter().find(|declared| declared.name == port);
        let ty = match declared.map(|declared| declared.port_type) {
            None | Some(Type::Any) => Type::of(&data),
            Some(ty) => ty,
        };
        self.send_message(port, Message { ty, data })
    }

    /// Puts a message out by `port`, whatever type it has.
    ///
    /// # Errors
    /// The message cannot be written as JSON.
    pub fn send_message(&mut self, port: &str, message: Message) -> Outcome {
        let outputs = BTreeMap::from([(port, message)]);
        self.host.send(serde_json::to_string(&outputs)?);
        Ok(())
    }

    /// One value of the state, for actors that leave the rest of it where it is
    /// (`context_state = false`, and a unit struct).
    ///
    /// # Errors
    /// It is no `T`.
    pub fn state<T: DeserializeOwned>(&mut self, key: &str) -> Outcome<Option<T>> {
        serde_json::from_str(&self.host.state(key))
            .and_then(|value| read(&value))
            .map_err(|error| Error::new(format!("state `{key}`: {error}")))
    }

    /// Sets one value of the state. The struct of an actor that has one wins over it.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn set_state(&mut self, key: &str, value: &(impl Serialize + ?Sized)) -> Outcome {
        self.host.set_state(key, serde_json::to_string(value)?);
        Ok(())
    }

    /// The actor's name.
    #[must_use]
    pub fn actor(&self) -> &str {
        &self.around.node_id
    }

    /// The actor's configuration.
    ///
    /// # Errors
    /// It is no `C`.
    pub fn config<C: DeserializeOwned>(&self) -> Outcome<C> {
        let config = Value::Object(self.around.config.clone());
        C::deserialize(config).map_err(|error| Error::new(format!("config: {error}")))
    }

    /// A value of the actor's environment.
    #[must_use]
    pub fn env(&self, name: &str) -> Option<&str> {
        self.around.resolved_env.get(name).map(String::as_str)
    }

    /// What is known of the message's way, where the actor has `context_meta = true`.
    #[must_use]
    pub fn meta(&self) -> &Value {
        &self.meta
    }

    /// Writes a line to the actor's log.
    pub fn log(&mut self, level: Level, text: impl AsRef<str>) {
        self.host.log(level, text.as_ref());
    }

    /// Says what happened.
    pub fn info(&mut self, text: impl AsRef<str>) {
        self.log(Level::Info, text);
    }

    /// Says what somebody may want to look at.
    pub fn warn(&mut self, text: impl AsRef<str>) {
        self.log(Level::Warn, text);
    }
}
