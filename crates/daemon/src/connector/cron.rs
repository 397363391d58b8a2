//! `std:cron`: a tick at times of the calendar, such as six in the morning on workdays.
//!
//! What is waited for is a moment of the clock on the wall, so the clock is looked at again
//! and again: it may be set, or the machine may have slept. A moment that has passed gives
//! one tick, however late; moments that passed before that one, while the flow was behind or
//! the clock jumped, are counted in it. Nothing is made up for from the time before the
//! source started, and a clock that is set back gives no tick twice.

use std::{sync::Arc, time::Duration};

use croner::{
    Cron,
    parser::{CronParser, Seconds},
};
use futures_util::future::BoxFuture;
use jiff::{Timestamp, Zoned, tz::TimeZone};
use reflowd_runtime::{Digest, Emitter, Message, Metadata, PortName, Source, SourceError, Type};
use serde::Deserialize;
use serde_json::json;
use tokio::time;

use super::{Builtin, Prepared, port, port_name};

/// How often the clock is looked at: so late a tick may be after the clock was set.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Moments that are counted one by one; where more were missed, it was so many at least.
const MOST_COUNTED: u64 = 100_000;

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
            let mut last = Timestamp::now();
            while let Some(next) = self.schedule.after(last) {
                loop {
                    // Negative where the moment has passed, and then there is no wait.
                    let left = next.duration_since(Timestamp::now());
                    let Some(left) = Duration::try_from(left).ok().filter(|left| !left.is_zero())
                    else {
                        break;
                    };
                    time::sleep(left.min(LOOK_AGAIN)).await;
                }
                let due = self.schedule.due(next, Timestamp::now());
                last = due.at;
                out.emit(&self.out, self.schedule.message(due)).await;
            }
            Ok(())
        })
    }
}

/// When ticks are due.
///
/// Pure: it is told the time.
struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// One tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    at: Timestamp,
    /// Moments that passed before it without a tick.
    missed: u64,
}

impl Schedule {
    fn new(text: &str, zone: Option<&str>) -> Result<Self, String> {
        let cron = CronParser::builder()
            .seconds(Seconds::Optional)
            .build()
            .parse(text)
            .map_err(|error| format!("`schedule` is no cron pattern: {error}"))?;
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| {
                format!("there is no time zone `{name}`; write one such as `Europe/Berlin`")
            })?,
        };
        Ok(Self { cron, zone })
    }

    /// The first moment after `last`, if there is one within the years that can be told.
    fn after(&self, last: Timestamp) -> Option<Timestamp> {
        let found =
            self.cron.find_next_occurrence(&last.to_zoned(self.zone.clone()), false).ok()?;
        // Were it not later, the source would tick without end.
        Some(found.timestamp()).filter(|next| *next > last)
    }

    /// The latest moment that has come by `now`, when `next` has.
    fn due(&self, next: Timestamp, now: Timestamp) -> Due {
        let mut due = Due { at: next, missed: 0 };
        while let Some(later) = self.after(due.at).filter(|later| *later <= now) {
            if due.missed == MOST_COUNTED {
                let at = self.until(now).unwrap_or(later);
                return Due { at, ..due };
            }
            due = Due { at: later, missed: due.missed + 1 };
        }
        due
    }

    /// The last moment up to `now`.
    fn until(&self, now: Timestamp) -> Option<Timestamp> {
        let found = self.cron.find_previous_occurrence(&now.to_zoned(self.zone.clone()), true);
        Some(found.ok()?.timestamp()).filter(|last| *last <= now)
    }

    fn message(&self, due: Due) -> Message {
        let scheduled: Zoned = due.at.to_zoned(self.zone.clone());
        let scheduled = scheduled.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
        let mut data = json!({ "scheduled": scheduled, "time": due.at.as_millisecond() });
        if due.missed > 0 {
            data["missed"] = due.missed.into();
        }
        Message::new(Type::Event, data.to_string()).expect("any JSON is an Event")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str, zone: &str) -> Schedule {
        Schedule::new(text, Some(zone)).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The moments that follow on `last`, as they are shown.
    #[track_caller]
    fn check(text: &str, zone: &str, last: &str, expected: &[&str]) {
        let schedule = schedule(text, zone);
        let mut last = at(last);
        for expected in expected {
            last = schedule.after(last).unwrap();
            let message = schedule.message(Due { at: last, missed: 0 });
            let data: serde_json::Value = serde_json::from_slice(message.data()).unwrap();
            assert_eq!(data["scheduled"], *expected, "{text}");
            assert_eq!(data["time"], last.as_millisecond());
        }
    }

    #[test]
    fn moments_are_those_of_the_zone() {
        check(
            "0 6 * * MON-FRI",
            "Europe/Berlin",
            "2026-11-20T12:00:00Z",
            &["2026-11-23T06:00:00+01:00", "2026-11-24T06:00:00+01:00"],
        );
        check("*/20 * * * * *", "UTC", "2026-01-01T00:00:39Z", &["2026-01-01T00:00:40+00:00"]);
        // The last day of a month, and the second Tuesday.
        check("0 0 L * *", "UTC", "2028-02-01T00:00:00Z", &["2028-02-29T00:00:00+00:00"]);
        check("0 9 * * TUE#2", "UTC", "2026-09-01T00:00:00Z", &["2026-09-08T09:00:00+00:00"]);
    }

    #[test]
    fn a_clock_that_is_put_on_or_back_gives_each_day_its_tick() {
        // There is no half past two on that night: it comes when the clock has jumped.
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00Z",
            &["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
        );
        // There are two on that one: only the first counts.
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        );
    }

    #[test]
    fn moments_that_have_passed_are_counted_in_the_latest() {
        let schedule = schedule("* * * * *", "UTC");
        let next = at("2026-01-01T00:01:00Z");
        let due = |now: &str| schedule.due(next, at(now));
        assert_eq!(due("2026-01-01T00:01:00Z"), Due { at: next, missed: 0 });
        assert_eq!(due("2026-01-01T00:01:59Z"), Due { at: next, missed: 0 });
        let late = Due { at: at("2026-01-01T01:00:00Z"), missed: 59 };
        assert_eq!(due("2026-01-01T01:00:30Z"), late);
        let data = schedule.message(late);
        assert!(String::from_utf8_lossy(data.data()).contains("\"missed\":59"));
        // Beyond what is counted, the rest comes as one tick too.
        let late = Due { at: at("2027-01-01T00:00:00Z"), missed: MOST_COUNTED };
        assert_eq!(due("2027-01-01T00:00:30Z"), late);
    }

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
