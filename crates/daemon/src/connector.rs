//! Built-in actors that talk to the outside: `std:http-in`, `std:http-out` and the
//! like.
//!
//! A connector that brings messages in is a [`Source`]; one that takes them out
//! is a [`Program`] whose turn is one write. Both read their configuration into
//! a struct before anything runs, so a mistake in it is found when the flow is
//! checked and not when the first message comes.

mod interval;
mod cron;
mod file_in;
mod http_in;
mod events;
mod sink;
mod file_out;
mod stdout;
mod log;
mod http_out;

use std::{path::Path, sync::Arc};

use reflowd_hot_reload::GenerationKeys;
use reflowd_runtime::{
    ActorLog, ActorName, Digest, ERROR_PORT, Metadata, Port, PortName, Program, Source, System,
    Type,
};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

pub(crate) use file_in::BYTE_ORDER_MARK;
pub(crate) use http_in::Listeners;

/// How like two names must be for one to be suggested for the other.
const ALIKE: f64 = 0.6;

/// One of the connectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builtin {
    /// `std:interval`: a tick every so often.
    Interval,
    /// `std:cron`: a tick at times of the calendar.
    Cron,
    /// `std:http-in`: what is sent to an address.
    HttpIn,
    /// `std:events`: what happens in the daemon.
    Events,
    /// `std:file-in`: the lines of a file.
    FileIn,
    /// `std:file-out`: a line in a file for each message.
    FileOut,
    /// `std:stdout`: a line on standard output for each message.
    Stdout,
    /// `std:log`: a line in the daemon's log for each message.
    Log,
    /// `std:http-out`: a request for each message.
    HttpOut,
}

/// What a connector is made ready for, and with.
pub(crate) struct Setting<'a> {
    /// The actor that it is to be.
    pub(crate) actor: &'a ActorName,
    /// The actor's keys; of these, `config` and `env` concern connectors.
    pub(crate) keys: &'a GenerationKeys,
    /// The actor's log.
    pub(crate) log: ActorLog,
    /// The folder of the configuration file, from which relative paths go.
    pub(crate) base: &'a Path,
    /// What connectors ask of the daemon.
    pub(crate) services: &'a Services,
}

/// What connectors ask of the daemon.
#[derive(Clone)]
pub(crate) struct Services {
    /// The actors and wires.
    pub(crate) system: System,
    /// The addresses that are listened on.
    pub(crate) listeners: Arc<Listeners>,
}

/// A connector with its configuration, ready to run.
pub(crate) enum Prepared {
    /// It puts messages out.
    Source(Arc<dyn Source>),
    /// It takes messages.
    Sink(Arc<dyn Program>),
}

/// A connector cannot be made ready.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ConnectorError {
    /// No connector has that name.
    #[error("there is no connector `{name}`{}; the connectors are {names}", did_you_mean(*.suggestion))]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// One that is much like it.
        suggestion: Option<&'static str>,
        /// All of them.
        names: String,
    },
    /// The actor's `config` does not fit the connector.
    #[error("the config of `{connector}` does not fit: {why}; write, for example, `{example}`")]
    Config {
        /// The connector.
        connector: &'static str,
        /// What is wrong.
        why: String,
        /// A line that would do.
        example: &'static str,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|name| format!(": did you mean `{name}`?")).unwrap_or_default()
}

/// The connector that an actor's `module` names, such as `std:interval`.
pub(crate) fn find(name: &str) -> Option<Builtin> {
    Builtin::ALL.into_iter().find(|builtin| builtin.name() == name)
}

/// The names of all connectors, as `module` has them.
pub(crate) fn names() -> Arc<[String]> {
    Builtin::ALL.map(|builtin| builtin.name().to_owned()).into()
}

/// What to answer when [`find`] has found nothing.
pub(crate) fn unknown(name: &str) -> ConnectorError {
    let likeness = |builtin: &Builtin| strsim::jaro_winkler(tail(builtin.name()), tail(name));
    let suggestion = Builtin::ALL
        .into_iter()
        .filter(|builtin| likeness(builtin) >= ALIKE)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .map(Builtin::name);
    let names: Vec<_> = Builtin::ALL.iter().map(|b| format!("`{}`", b.name())).collect();
    ConnectorError::Unknown { name: name.into(), suggestion, names: names.join(", ") }
}

/// A connector's name without the prefix that all of them share.
fn tail(name: &str) -> &str {
    name.strip_prefix("std:").unwrap_or(name)
}

impl Builtin {
    /// All connectors.
    pub(crate) const ALL: [Self; 9] = [
        Self::Interval,
        Self::Cron,
        Self::FileIn,
        Self::HttpIn,
        Self::Events,
        Self::FileOut,
        Self::Stdout,
        Self::Log,
        Self::HttpOut,
    ];

    /// The name by which configurations call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Interval => "std:interval",
            Self::Cron => "std:cron",
            Self::HttpIn => "std:http-in",
            Self::Events => "std:events",
            Self::Log => "std:log",
            Self::HttpOut => "std:http-out",
            Self::FileIn => "std:file-in",
            Self::FileOut => "std:file-out",
            Self::Stdout => "std:stdout",
        }
    }

    /// What stands for the connector's code: the same in every daemon of its version.
    pub(crate) fn digest(self) -> Digest {
        Digest::new(Sha256::digest(format!("{}/1", self.name())).into())
    }

    /// Its ports and the schema of its configuration. Ports that a configuration names are
    /// not among them.
    pub(crate) fn metadata(self) -> Metadata {
        match self {
            Self::Interval => interval::metadata(),
            Self::Cron => cron::metadata(),
            Self::HttpIn => http_in::metadata(&[]),
            Self::Events => events::metadata(),
            Self::Log => log::metadata(),
            Self::HttpOut => http_out::metadata(),
            Self::FileIn => file_in::metadata(),
            Self::FileOut => file_out::metadata(),
            Self::Stdout => stdout::metadata(),
        }
    }

    /// Whether its ports follow from the configuration.
    pub(crate) fn has_ports_by_config(self) -> bool {
        matches!(self, Self::HttpIn)
    }

    /// The same with the ports that this configuration names; nothing, where it does not fit.
    pub(crate) fn metadata_with(
        self,
        config: &serde_json::Map<String, serde_json::Value>,
    ) -> Option<Metadata> {
        match self {
            Self::HttpIn => http_in::metadata_with(&self.read(config).ok()?),
            _ => Some(self.metadata()),
        }
    }

    /// Makes the connector ready for one actor. Opens nothing yet.
    ///
    /// # Errors
    /// The configuration does not fit, and what to write instead.
    pub(crate) fn prepare(self, setting: &Setting<'_>) -> Result<Prepared, ConnectorError> {
        let (config, base) = (&setting.keys.config, setting.base);
        let prepared = match self {
            Self::Interval => interval::prepare(self, self.read(config)?),
            Self::Cron => cron::prepare(self, self.read(config)?),
            Self::FileIn => file_in::prepare(self, self.read(config)?, base),
            Self::HttpIn => http_in::prepare(self, self.read(config)?, setting),
            Self::Events => events::prepare(self, self.read(config)?, setting),
            Self::FileOut => file_out::prepare(self, self.read(config)?, base),
            Self::Stdout => stdout::prepare(self, self.read(config)?),
            Self::Log => log::prepare(self, self.read(config)?, setting),
            Self::HttpOut => http_out::prepare(self, self.read(config)?, setting),
        };
        prepared.map_err(|why| self.refuse(why))
    }

    fn read<T: DeserializeOwned>(
        self,
        config: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<T, ConnectorError> {
        T::deserialize(serde_json::Value::Object(config.clone()))
            .map_err(|error| self.refuse(error.to_string()))
    }

    fn refuse(self, why: String) -> ConnectorError {
        ConnectorError::Config { connector: self.name(), why, example: self.example() }
    }

    /// A configuration that works, to be shown beside an error.
    fn example(self) -> &'static str {
        match self {
            Self::Interval => r#"config = { every = "1s" }"#,
            Self::Cron => r#"config = { schedule = "0 6 * * MON-FRI", zone = "Europe/Berlin" }"#,
            Self::HttpIn => {
                r#"config = { listen = "127.0.0.1:8080", routes = [{ path = "/orders", port = "orders" }] }"#
            }
            Self::Events => r#"config = { only = ["rolled-back", "failed"] }"#,
            Self::Log => r#"config = { level = "warn" }"#,
            Self::HttpOut => {
                r#"config = { url = "https://example.com/hook", headers = { Authorization = "Bearer ${TOKEN}" } }"#
            }
            Self::FileIn => r#"config = { path = "in.jsonl", rate = 200, mode = "repeat" }"#,
            Self::FileOut => r#"config = { path = "out.jsonl", append = true }"#,
            Self::Stdout => r#"config = { what = "data" }"#,
        }
    }
}

/// A port of a connector.
fn port(name: &str, description: &str, port_type: Type) -> Port {
    Port { name: port_name(name), description: description.into(), port_type, required: false }
}

fn port_name(name: &str) -> PortName {
    name.parse().expect("the ports of connectors have names")
}

/// The outport on which a source tells of what it could not read.
fn error_port() -> Port {
    port(ERROR_PORT, "what could not be read, and why", Type::Error)
}

#[cfg(test)]
mod tests;
