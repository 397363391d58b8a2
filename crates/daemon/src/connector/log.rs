//! `std:log`: a line in the daemon's log for each message.
//!
//! The line is the actor's, as if a module had logged it: it is bound by the same
//! `log_rate`, cut at 8 KiB, free of control characters and of secrets. What is over the
//! rate is counted, not written, and the message is done all the same: a log that could
//! hold up the flow would be worse than one with a gap.

use futures_util::future::{BoxFuture, ready};
use reflowd_runtime::{ActorLog, Metadata, Type};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::{
    Builtin, Prepared, Setting, port,
    sink::{Lines, Sink, What},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// How important the lines are.
    #[serde(default)]
    level: Level,
    /// What of a message is written.
    #[serde(default)]
    what: What,
}

/// How important a line is.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        component: "std:log".into(),
        description: "writes each message to the daemon's log".into(),
        inports: vec![port("in", "what is to be written", Type::Any)],
        outports: Vec::new(),
        config_schema: Some(json!({
            "type": "object",
            "properties": {
                "level": { "enum": ["error", "warn", "info", "debug"], "default": "info" },
                "what": What::schema(),
            },
            "additionalProperties": false,
        })),
        version: None,
    }
}

pub(super) fn prepare(
    builtin: Builtin,
    config: Config,
    setting: &Setting<'_>,
) -> Result<Prepared, String> {
    let level = match config.level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
    };
    Ok(Sink::prepare(builtin, config.what, Log { log: setting.log.clone(), level }))
}

struct Log {
    log: ActorLog,
    level: tracing::Level,
}

impl Lines for Log {
    fn write<'a>(&'a self, line: &'a [u8], _: Instant) -> BoxFuture<'a, Result<(), String>> {
        self.log.line(self.level, line);
        Box::pin(ready(Ok(())))
    }
}
