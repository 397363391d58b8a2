//! `std:interval`: a tick every so often.
//!
//! Ticks stand at whole multiples of `every` after the start, so they do not
//! drift. A tick that cannot leave in time because the flow is behind is skipped
//! and counted in the next one, so ticks never pile up.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use reflowd_runtime::{
    Digest, Emitter, Message, Metadata, PortName, Source, SourceError, Type, unix_millis,
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{self, Instant};

use super::{Builtin, Prepared, port, port_name};

/// The shortest interval: the clock of timers has no finer steps.
const SHORTEST: Duration = Duration::from_millis(1);

/// The longest interval; what is longer is taken for a slip.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// From one tick to the next, such as `1s` or `500ms`.
    every: String,
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        component: "std:interval".into(),
        description: "puts out a tick every so often".into(),
        inports: Vec::new(),
        outports: vec![port(
            "out",
            "{\"n\": ticks so far, \"time\": milliseconds since 1970, \"missed\": ticks skipped before this one}",
            Type::Event,
        )],
        config_schema: Some(json!({
            "type": "object",
            "properties": {
                "every": { "type": "string", "description": "from one tick to the next, such as 1s or 500ms" },
            },
            "required": ["every"],
            "additionalProperties": false,
        })),
        version: None,
    }
}

pub(super) fn prepare(builtin: Builtin, config: Config) -> Result<Prepared, String> {
    let every = humantime::parse_duration(&config.every)
        .map_err(|error| format!("`every` is no duration: {error}"))?;
    if !(SHORTEST..=LONGEST).contains(&every) {
        return Err(format!("`every` is {}; it must be 1ms to 366 days", config.every));
    }
    Ok(Prepared::Source(Arc::new(Interval {
        digest: builtin.digest(),
        metadata: metadata(),
        every,
        out: port_name("out"),
    })))
}

struct Interval {
    digest: Digest,
    metadata: Metadata,
    every: Duration,
    out: PortName,
}

impl Source for Interval {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let began = Instant::now();
            let mut tick = Tick { slot: 0, missed: 0 };
            for n in 1u64.. {
                tick = tick.next(began.elapsed(), self.every);
                time::sleep_until(began + tick.after(self.every)).await;
                out.emit(&self.out, tick.message(n)).await;
            }
            unreachable!("a tick a millisecond for 500 million years")
        })
    }
}

/// One tick: where it stands, and how many before it were skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tick {
    /// Which multiple of the interval it stands at.
    slot: u64,
    missed: u64,
}

impl Tick {
    /// The tick that follows, when `elapsed` has passed since the start.
    ///
    /// A tick whose time has come but whose successor's has not is late, and goes
    /// out at once; one that has been overtaken by its successor is skipped.
    fn next(self, elapsed: Duration, every: Duration) -> Self {
        let due = u64::try_from(elapsed.as_nanos() / every.as_nanos()).unwrap_or(u64::MAX);
        let slot = due.max(self.slot + 1);
        Self { slot, missed: slot - self.slot - 1 }
    }

    fn after(self, every: Duration) -> Duration {
        let nanos = every.as_nanos().saturating_mul(u128::from(self.slot));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn message(self, n: u64) -> Message {
        let mut data = json!({ "n": n, "time": unix_millis() });
        if self.missed > 0 {
            data["missed"] = self.missed.into();
        }
        Message::new(Type::Event, data.to_string()).expect("any JSON is an Event")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(slot: u64, elapsed_millis: u64, expected: (u64, u64)) {
        let tick = Tick { slot, missed: 0 };
        let next = tick.next(Duration::from_millis(elapsed_millis), Duration::from_secs(1));
        assert_eq!((next.slot, next.missed), expected, "slot {slot} at {elapsed_millis} ms");
    }

    #[test]
    fn ticks_stand_at_multiples_and_the_overtaken_ones_are_skipped() {
        check(0, 0, (1, 0));
        check(1, 1_000, (2, 0));
        check(1, 1_999, (2, 0));
        // Late, but not overtaken: it goes out at once.
        check(1, 2_500, (2, 0));
        check(1, 3_000, (3, 1));
        check(1, 9_999, (9, 7));
    }
}
