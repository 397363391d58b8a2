//! `std:events`: what happens in the daemon, as messages, so that a rollback can raise an
//! alarm.
//!
//! The daemon keeps its events whether anybody reads them or not, and this source reads at
//! the pace of its wires. What has gone by the time that it comes to it is told in one
//! message, `{"event": "missed", "count": …}`, in its place among the others.
//!
//! An event that its own messages cause would cause more of them, without end. So the events
//! of the source itself, and of the actors that its messages reach over any number of
//! wires, are left out, with a rollback being left out only where it is of such actors alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use reflowd_runtime::{
    ActorName, Digest, Emitter, Event, EventKind, Message, MessageId, Metadata, PortName, Position,
    Source, SourceError, System, Type,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::broadcast::error::RecvError, time::Instant};

use super::{ALIKE, Builtin, Prepared, Setting, port, port_name};

/// How long it is taken for known where the source's messages go. An event that they cause
/// can be passed on for so long after a wire has come; then no more.
const REACH_HOLDS: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The events that are passed on, by name; all where it is not set.
    only: Option<Vec<String>>,
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        component: "std:events".into(),
        description: "puts out what happens in the daemon".into(),
        inports: Vec::new(),
        outports: vec![port(
            "out",
            "an event as `reflowd events --json` shows it; {\"event\": \"missed\", \"count\": events that were not kept for it}",
            Type::Event,
        )],
        config_schema: Some(json!({
            "type": "object",
            "properties": {
                "only": {
                    "type": "array",
                    "items": { "enum": EventKind::NAMES },
                    "minItems": 1,
                    "description": "the events that are passed on; all where it is not set",
                },
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
    let only = match config.only {
        None => None,
        Some(names) if names.is_empty() => {
            return Err("`only` names no event; leave it out for all of them".into());
        }
        Some(names) => Some(names.iter().map(|name| known(name)).collect::<Result<_, _>>()?),
    };
    let system = setting.services.system.clone();
    Ok(Prepared::Source(Arc::new(Happenings {
        digest: builtin.digest(),
        metadata: metadata(),
        system,
        only,
        out: port_name("out"),
    })))
}

/// The event of that name.
fn known(name: &str) -> Result<&'static str, String> {
    if let Some(known) = EventKind::NAMES.iter().find(|known| **known == name) {
        return Ok(known);
    }
    let likeness = |known: &&str| strsim::jaro_winkler(known, name);
    let close = EventKind::NAMES
        .iter()
        .filter(|known| likeness(known) >= ALIKE)
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let hint = close.map(|close| format!(": did you mean `{close}`?")).unwrap_or_default();
    Err(format!("there is no event `{name}`{hint}"))
}

struct Happenings {
    digest: Digest,
    metadata: Metadata,
    system: System,
    only: Option<BTreeSet<&'static str>>,
    out: PortName,
}

impl Source for Happenings {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            // A position is of the process that has noted it.
            let of = [half(MessageId::new().as_u128() >> 64), 0];
            // Those of earlier processes were for the source as it ran then.
            let before = self.system.events().before();
            let last = out.resume().filter(|come| come.of == of).map_or(before, |come| come.at);
            let mut reading = Reading { of, last, reach: None, source: self, out };
            loop {
                let (past, mut live) = self.system.events().since(reading.last);
                for event in past {
                    reading.pass_on(event).await;
                }
                loop {
                    match live.recv().await {
                        Ok(event) => reading.pass_on(event).await,
                        // What it no longer has may still be in the history.
                        Err(RecvError::Lagged(_)) => break,
                        Err(RecvError::Closed) => return Ok(()),
                    }
                }
            }
        })
    }
}

/// The lower half of a number.
fn half(number: u128) -> u64 {
    u64::try_from(number & u128::from(u64::MAX)).expect("64 bits are 64 bits")
}

/// How far the source has come.
struct Reading<'a> {
    /// The process of which it reads the events.
    of: [u64; 2],
    /// The number of the last event that was looked at.
    last: u64,
    /// Where its messages go, and when that was found out.
    reach: Option<(Instant, BTreeSet<ActorName>)>,
    source: &'a Happenings,
    out: Emitter,
}

impl Reading<'_> {
    async fn pass_on(&mut self, event: Event) {
        if event.number <= self.last {
            return;
        }
        let missed = event.number - self.last - 1;
        if missed > 0 {
            let data = json!({ "event": "missed", "count": missed }).to_string();
            self.put(event.number - 1, data).await;
        }
        if self.wants(&event.kind) {
            let data = serde_json::to_string(&event).expect("an event can be written");
            self.put(event.number, data).await;
        } else {
            self.last = event.number;
            self.out.come_to(Some(self.position(event.number)));
        }
    }

    /// The position is noted with the message, so that an edit of the source in between
    /// neither repeats nor loses one.
    async fn put(&mut self, number: u64, data: String) {
        self.last = number;
        let message = Message::new(Type::Event, data).expect("any JSON is an Event");
        self.out.emit_from(&self.source.out, message, Some(self.position(number))).await;
    }

    fn position(&self, number: u64) -> Position {
        Position { of: self.of, at: number, ..Position::default() }
    }

    fn wants(&mut self, kind: &EventKind) -> bool {
        if self.source.only.as_ref().is_some_and(|only| !only.contains(kind.name())) {
            return false;
        }
        let about = match kind {
            EventKind::RolledBack { actors, .. } => actors.as_slice(),
            kind => kind.actor().map_or(&[][..], std::slice::from_ref),
        };
        about.is_empty() || !about.iter().all(|actor| self.reach().contains(actor))
    }

    /// The source and all actors that its messages reach.
    fn reach(&mut self) -> &BTreeSet<ActorName> {
        let now = Instant::now();
        let known = self.reach.take().filter(|(found, _)| now - *found < REACH_HOLDS);
        let known = known.unwrap_or_else(|| {
            let wires = self.source.system.wires();
            let mut next: BTreeMap<ActorName, Vec<ActorName>> = BTreeMap::new();
            for wire in wires {
                let (from, to) = (wire.from().actor.clone(), wire.to().actor.clone());
                next.entry(from).or_default().push(to);
            }
            (now, reached(self.out.actor(), &next))
        });
        &self.reach.insert(known).1
    }
}

/// Everything that can be come to from `start`, itself included.
fn reached(start: &ActorName, next: &BTreeMap<ActorName, Vec<ActorName>>) -> BTreeSet<ActorName> {
    let mut reached = BTreeSet::new();
    let mut open = vec![start];
    while let Some(actor) = open.pop() {
        if reached.insert(actor.clone()) {
            open.extend(next.get(actor).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wires: &[(&str, &str)], start: &str, expected: &[&str]) {
        let mut next: BTreeMap<ActorName, Vec<ActorName>> = BTreeMap::new();
        for (from, to) in wires {
            next.entry(from.parse().unwrap()).or_default().push(to.parse().unwrap());
        }
        let reached = reached(&start.parse().unwrap(), &next);
        let reached: Vec<_> = reached.iter().map(ActorName::as_str).collect();
        assert_eq!(reached, expected);
    }

    #[test]
    fn messages_reach_what_any_number_of_wires_leads_to() {
        check(&[], "a", &["a"]);
        check(&[("a", "b"), ("b", "c"), ("x", "b")], "a", &["a", "b", "c"]);
        check(&[("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")], "a", &["a", "b", "c"]);
    }

    #[test]
    fn an_unknown_event_is_answered_with_one_that_is_like_it() {
        assert_eq!(known("failed"), Ok("failed"));
        assert!(known("rollback").unwrap_err().contains("did you mean `rolled-back`?"));
        assert!(!known("xyz").unwrap_err().contains("did you mean"));
    }
}
