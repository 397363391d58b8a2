//! `std:cron`: a tick at times of the calendar, such as six in the morning on workdays.
//!
//! What is waited for is a moment of the clock on the wall, so the clock is looked at again
//! and again: it may be set, or the machine may have slept. A moment that has passed gives
//! one tick, however late; moments that passed before that one, while the flow was behind or
//! the clock jumped, are counted in it. Nothing is made up for from the time before the
//! source started.

mod schedule;
mod look;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use reflowd_runtime::{Digest, Emitter, Metadata, PortName, Source, SourceError, Type};
use serde::Deserialize;
use serde_json::json;
use tokio::time;
use tracing::warn;

use look::{ClockLook, Watch};
use schedule::Schedule;

use super::{Builtin, Prepared, port, port_name};

/// How often the clock is looked at: so late a tick may be after the clock was set.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Five fields, or six with seconds first: `0 6 * * MON-FRI`.
    schedule: String,
    /// The time zone of these, such as `Europe/Berlin`; UTC where it is not set.
    zone: Option<String>,
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        component: "std:cron".into(),
        description: "puts out a tick at times of the calendar".into(),
        inports: Vec::new(),
        outports: vec![port(
            "out",
            "{\"scheduled\": the moment, as RFC 3339 with its offset, \"time\": the same in milliseconds since 1970, \"missed\": moments skipped before this one}",
            Type::Event,
        )],
        config_schema: Some(json!({
            "type": "object",
            "properties": {
                "schedule": {
                    "type": "string",
                    "description": "minute, hour, day of month, month, day of week; or six fields, the first for seconds",
                },
                "zone": { "type": "string", "default": "UTC", "description": "a time zone, such as Europe/Berlin" },
            },
            "required": ["schedule"],
            "additionalProperties": false,
        })),
        version: None,
    }
}

pub(super) fn prepare(builtin: Builtin, config: Config) -> Result<Prepared, String> {
    let schedule = Schedule::new(&config.schedule, config.zone.as_deref())?;
    if schedule.after(Timestamp::now()).is_none() {
        return Err(format!("no moment ever fits the schedule `{}`", config.schedule));
    }
    Ok(Prepared::Source(Arc::new(Calendar {
        digest: builtin.digest(),
        metadata: metadata(),
        schedule,
        out: port_name("out"),
    })))
}

struct Calendar {
    digest: Digest,
    metadata: Metadata,
    schedule: Schedule,
    out: PortName,
}

impl Source for Calendar {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let mut watch = Watch::new(&self.schedule, Timestamp::now());
            loop {
                match watch.look(Timestamp::now()) {
                    ClockLook::Wait(left) => time::sleep(left.min(LOOK_AGAIN)).await,
                    ClockLook::Due(due) => out.emit(&self.out, self.schedule.message(due)).await,
                    ClockLook::SetBack { by } => {
                        let by = SignedDuration::from_secs(by.as_secs());
                        warn!(actor = %out.actor(), by = format!("{by:#}"), "the clock was set back, and ticks go by what it says now");
                    }
                    ClockLook::Never => return Ok(()),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_schedule_is_refused() {
        let refused = |text: &str, zone: Option<&str>| Schedule::new(text, zone).err().unwrap();
        assert!(refused("every day", None).contains("no cron pattern"));
        assert!(refused("61 * * * *", None).contains("no cron pattern"));
        assert!(refused("* * * * *", Some("Europe/Atlantis")).contains("no time zone"));
        // A day that no year has.
        let never = Config { schedule: "0 0 30 2 *".into(), zone: None };
        let why = prepare(Builtin::Cron, never).err().unwrap();
        assert!(why.contains("no moment"), "{why}");
    }
}
