//! What has happened to actors, modules and the flow, for people and tools.

use std::{borrow::Cow, collections::VecDeque};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::{ActorName, Digest, envelope::unix_millis};

/// Events that are kept.
const MAX_EVENTS: usize = 10_000;

/// Events that a reader may be behind before it misses some.
const READER_LAG: usize = 4_096;

/// Something that happened.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Event {
    /// Its number, which no other event of the same data folder has. Later ones have greater
    /// ones, and those of one process have no gaps.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub time: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the variants and fields are the words that users read")]
pub enum EventKind {
    /// The daemon has begun: what follows is of this process.
    DaemonStarted { version: String },
    /// The daemon before this one did not end by itself, or not with everything saved. What was
    /// in its mailboxes is gone: so many messages, of these actors, when it was last seen.
    UncleanStop { seen: u64, messages: u64, actors: Vec<ActorName>, why: String },
    /// An actor takes messages for the first time.
    Started { actor: ActorName, generation: u64, digest: Digest },
    /// An actor runs another generation.
    Swapped {
        actor: ActorName,
        generation: u64,
        from: Digest,
        digest: Digest,
        /// Messages that waited in the mailbox.
        queued: u64,
    },
    /// Keys that need no new engine were applied.
    Applied { actor: ActorName },
    /// A generation has passed its trial.
    TrialPassed {
        actor: ActorName,
        generation: u64,
        judge: u64,
        /// Turns that succeeded.
        turns: u32,
        /// Messages that the judge took over.
        failures: u32,
    },
    /// A generation on trial failed on a message, and its judge was asked about it.
    Opinion {
        actor: ActorName,
        generation: u64,
        judge: u64,
        /// Whether the judge could process it.
        stands: bool,
        /// The state that it was given: `present`, `before-migration` or `at-swap`.
        state: Cow<'static, str>,
        /// What the generation on trial failed with.
        failure: String,
        /// Messages that the judge has taken over in this trial.
        failures: u32,
        /// Why the judge could not process it.
        why: Option<String>,
    },
    /// Actors run again what they ran before.
    RolledBack {
        actors: Vec<ActorName>,
        back: Vec<GoneBack>,
        /// Turns whose state is lost.
        lost_turns: u64,
        why: String,
    },
    /// An actor has an earlier state again, because what has made a later one does not run.
    StateGivenBack {
        actor: ActorName,
        /// Milliseconds since the Unix epoch at which that state was put aside.
        since: u64,
        why: String,
    },
    /// What disk asks for is not run again as long as it asks for the same.
    Banned { actor: ActorName, generation: u64, digest: Digest },
    /// New generations are not put on trial.
    NoTrial { actors: Vec<ActorName>, why: String },
    /// An engine was replaced by another of the same generation.
    Restarted { actor: ActorName, why: String },
    /// An actor gave up and keeps its mailbox, or gives up for another reason than before.
    Failed { actor: ActorName, why: String },
    /// An actor that had given up works again.
    Recovered { actor: ActorName },
    /// What a source reads is not there yet; it goes on by itself once it is.
    Waiting { actor: ActorName, why: String },
    /// Lines that a source read are no messages: so many since this was told last. The reason is
    /// that of the last one.
    Unreadable { actor: ActorName, lines: u64, why: String },
    /// A file that a source had not seen the end of is out of its reach: what came after that
    /// byte and line may never be read.
    SourceGap { actor: ActorName, file: String, after_byte: u64, after_line: u64, why: String },
    /// An actor has waited ten seconds for a full mailbox.
    Blocked { actor: ActorName, by: Vec<ActorName> },
    /// A join has waited ten seconds with one inport full and another empty.
    Stalled { actor: ActorName, full: String, empty: String },
    /// An operator paused an actor.
    Paused { actor: ActorName },
    /// An operator resumed an actor.
    Resumed { actor: ActorName },
    /// An operator gave an actor another state.
    StateSet {
        actor: ActorName,
        generation: u64,
        /// Bytes of the state.
        bytes: u64,
        /// Bytes of the one that it replaced.
        before: u64,
        /// Whether the generation is on trial.
        on_trial: bool,
    },
    /// An actor was removed and works off its mailbox.
    Draining { actor: ActorName },
    /// An actor is gone.
    Stopped { actor: ActorName, dead_lettered: u64 },
    /// A module was refused.
    ModuleRefused { module: String, digest: Option<Digest>, reason: String, why: String },
    /// A module was loaded, and no actor runs it.
    ModuleLoaded { module: String, digest: Digest, why: String },
    /// A module's file is gone; what runs it goes on.
    FileGone { module: String, actors: Vec<ActorName> },
    /// What disk asked for took effect.
    Changed { added: Vec<ActorName>, changed: Vec<ActorName>, removed: Vec<ActorName> },
    /// A changed configuration was refused; nothing changed.
    ConfigRefused { why: String },
    /// The configuration cannot be read; what it said last stays in force.
    ConfigUnknown { why: String },
    /// The configuration can be read again.
    ConfigKnown,
    /// A change to some actors was refused; they go on as they are.
    ChangeRefused { actors: Vec<ActorName>, why: String },
    /// A change would remove so much that it waits for an operator.
    RemovalHeld { why: String },
    /// A watched folder cannot be read; nothing is taken for removed.
    FolderUnknown { path: String, why: String },
    /// Dead letters were lost; `letters` counts one for each damaged stretch of a file.
    DeadLettersLost { letters: u64, bytes: u64, reason: Cow<'static, str>, why: String },
    /// Messages of an actor became dead letters: so many since this was last told of it and
    /// this class of reason.
    DeadLetter {
        actor: ActorName,
        reason: Cow<'static, str>,
        letters: u64,
        /// The number of the last, for `reflowd dead show`.
        last: u64,
        why: String,
    },
    /// Dead letters cannot be written to disk and are kept in memory.
    DeadLettersInMemory { why: String },
    /// Dead letters are written to disk again.
    DeadLettersOnDisk,
    /// All queues together hold more than they may: nothing enters from outside.
    OverBudget { used: u64, limit: u64 },
    /// They hold less again: messages enter.
    WithinBudget { used: u64, limit: u64 },
    /// An actor's state cannot be written to disk: a crash would lose what follows from here on.
    StateNotWritten { actor: ActorName, why: String },
    /// An actor's state is written to disk again.
    StateWritten { actor: ActorName },
    /// Something in the data folder is not what was written there; `why` says what is done about it.
    DataDamaged { path: String, why: String },
    /// Something in the watched folder is not looked at.
    Ignored { path: String, why: String },
    /// A part of the daemon itself broke, which is a bug in it.
    Panicked {
        /// The part.
        part: Cow<'static, str>,
        why: String,
        /// The cost of the panic.
        costs: Cow<'static, str>,
    },
    /// A part that broke has done its work again.
    PartRecovered { part: Cow<'static, str> },
}

impl EventKind {
    /// The words that stand for events.
    pub const NAMES: &[&str] = &[
        "daemon-started",
        "unclean-stop",
        "started",
        "swapped",
        "applied",
        "trial-passed",
        "opinion",
        "rolled-back",
        "state-given-back",
        "banned",
        "no-trial",
        "restarted",
        "failed",
        "recovered",
        "waiting",
        "unreadable",
        "source-gap",
        "blocked",
        "stalled",
        "paused",
        "resumed",
        "state-set",
        "draining",
        "stopped",
        "module-refused",
        "module-loaded",
        "file-gone",
        "changed",
        "config-refused",
        "config-unknown",
        "config-known",
        "change-refused",
        "removal-held",
        "folder-unknown",
        "dead-letter",
        "dead-letters-lost",
        "dead-letters-in-memory",
        "dead-letters-on-disk",
        "over-budget",
        "within-budget",
        "state-not-written",
        "state-written",
        "data-damaged",
        "ignored",
        "panicked",
        "part-recovered",
    ];

    /// The word that stands for it as `event`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::DaemonStarted { .. } => "daemon-started",
            Self::UncleanStop { .. } => "unclean-stop",
            Self::DeadLetter { .. } => "dead-letter",
            Self::Started { .. } => "started",
            Self::Swapped { .. } => "swapped",
            Self::Applied { .. } => "applied",
            Self::TrialPassed { .. } => "trial-passed",
            Self::Opinion { .. } => "opinion",
            Self::RolledBack { .. } => "rolled-back",
            Self::StateGivenBack { .. } => "state-given-back",
            Self::Banned { .. } => "banned",
            Self::NoTrial { .. } => "no-trial",
            Self::Restarted { .. } => "restarted",
            Self::Failed { .. } => "failed",
            Self::Recovered { .. } => "recovered",
            Self::Waiting { .. } => "waiting",
            Self::Unreadable { .. } => "unreadable",
            Self::SourceGap { .. } => "source-gap",
            Self::Blocked { .. } => "blocked",
            Self::Stalled { .. } => "stalled",
            Self::Paused { .. } => "paused",
            Self::Resumed { .. } => "resumed",
            Self::StateSet { .. } => "state-set",
            Self::Draining { .. } => "draining",
            Self::Stopped { .. } => "stopped",
            Self::ModuleRefused { .. } => "module-refused",
            Self::ModuleLoaded { .. } => "module-loaded",
            Self::FileGone { .. } => "file-gone",
            Self::Changed { .. } => "changed",
            Self::ConfigRefused { .. } => "config-refused",
            Self::ConfigUnknown { .. } => "config-unknown",
            Self::ConfigKnown => "config-known",
            Self::ChangeRefused { .. } => "change-refused",
            Self::RemovalHeld { .. } => "removal-held",
            Self::FolderUnknown { .. } => "folder-unknown",
            Self::DeadLettersLost { .. } => "dead-letters-lost",
            Self::DeadLettersInMemory { .. } => "dead-letters-in-memory",
            Self::DeadLettersOnDisk => "dead-letters-on-disk",
            Self::OverBudget { .. } => "over-budget",
            Self::WithinBudget { .. } => "within-budget",
            Self::StateNotWritten { .. } => "state-not-written",
            Self::StateWritten { .. } => "state-written",
            Self::DataDamaged { .. } => "data-damaged",
            Self::Ignored { .. } => "ignored",
            Self::Panicked { .. } => "panicked",
            Self::PartRecovered { .. } => "part-recovered",
        }
    }

    /// Whether the event is about the actor, alone or among others.
    #[must_use]
    pub fn concerns(&self, actor: &ActorName) -> bool {
        match self {
            Self::UncleanStop { actors, .. }
            | Self::RolledBack { actors, .. }
            | Self::NoTrial { actors, .. }
            | Self::FileGone { actors, .. }
            | Self::ChangeRefused { actors, .. } => actors.contains(actor),
            Self::Blocked { actor: blocked, by } => blocked == actor || by.contains(actor),
            Self::Changed { added, changed, removed } => {
                added.iter().chain(changed).chain(removed).any(|name| name == actor)
            }
            kind => kind.actor() == Some(actor),
        }
    }

    /// The actor that it is about, where it is about one.
    #[must_use]
    pub fn actor(&self) -> Option<&ActorName> {
        match self {
            Self::Started { actor, .. }
            | Self::Swapped { actor, .. }
            | Self::Applied { actor }
            | Self::TrialPassed { actor, .. }
            | Self::Opinion { actor, .. }
            | Self::StateGivenBack { actor, .. }
            | Self::Banned { actor, .. }
            | Self::Restarted { actor, .. }
            | Self::Failed { actor, .. }
            | Self::Recovered { actor }
            | Self::Waiting { actor, .. }
            | Self::Unreadable { actor, .. }
            | Self::SourceGap { actor, .. }
            | Self::Blocked { actor, .. }
            | Self::Stalled { actor, .. }
            | Self::Paused { actor }
            | Self::Resumed { actor }
            | Self::StateSet { actor, .. }
            | Self::DeadLetter { actor, .. }
            | Self::StateNotWritten { actor, .. }
            | Self::StateWritten { actor }
            | Self::Draining { actor }
            | Self::Stopped { actor, .. } => Some(actor),
            _ => None,
        }
    }
}

/// One actor of a rollback.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct GoneBack {
    /// Which.
    pub actor: ActorName,
    /// The generation that it has left.
    pub left: u64,
    /// The module of that generation.
    pub left_digest: Digest,
    /// The generation that it runs now.
    pub generation: u64,
    /// The module that it runs now.
    pub digest: Digest,
    /// The generation whose module and keys these are.
    pub former: u64,
    /// Whether what it has left is not run again by itself: it was another module, or had other keys.
    pub banned: bool,
    /// Turns whose changes to the state are lost.
    #[serde(default)]
    pub lost_turns: u64,
    /// Where it was given an earlier state back: milliseconds since the Unix epoch at which
    /// that one was put aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_from: Option<u64>,
}

/// The history of events, and a way to follow it.
pub struct Events {
    history: Mutex<History>,
    live: broadcast::Sender<Event>,
}

#[derive(Default)]
struct History {
    events: VecDeque<Event>,
    numbers: u64,
    /// The number of the last event of earlier processes.
    before: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self { history: Mutex::default(), live: broadcast::channel(READER_LAG).0 }
    }
}

impl Events {
    /// Begins with the events of earlier processes, whose numbers grow. To be called before any
    /// event comes.
    pub fn restore(&self, past: Vec<Event>) {
        let mut history = self.history.lock();
        debug_assert_eq!(history.numbers, 0, "events that are there have numbers of their own");
        history.numbers = past.last().map_or(0, |event| event.number);
        history.before = history.numbers;
        let over = past.len().saturating_sub(MAX_EVENTS);
        history.events = past.into_iter().skip(over).collect();
    }

    /// The number of the last event of earlier processes.
    #[must_use]
    pub fn before(&self) -> u64 {
        self.history.lock().before
    }

    /// Adds an event.
    pub fn record(&self, kind: EventKind) {
        let mut history = self.history.lock();
        history.numbers += 1;
        let event = Event { number: history.numbers, time: unix_millis(), kind };
        if history.events.len() == MAX_EVENTS {
            history.events.pop_front();
        }
        history.events.push_back(event.clone());
        // Nobody may be listening; the history has it.
        _ = self.live.send(event);
    }

    /// The events after number `after` that are still known, and those to come.
    #[must_use]
    pub fn since(&self, after: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let history = self.history.lock();
        let past = history.events.iter().filter(|event| event.number > after).cloned().collect();
        (past, self.live.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_earlier_processes_come_first_and_numbers_go_on_after_them() {
        let before = Events::default();
        for _ in 0..MAX_EVENTS + 5 {
            before.record(EventKind::ConfigKnown);
        }
        let (mut past, _) = before.since(0);
        past.remove(0);
        let events = Events::default();
        events.restore(past);
        events.record(EventKind::DeadLettersOnDisk);
        let (all, _) = events.since(0);
        assert_eq!((all.len(), events.before()), (MAX_EVENTS, MAX_EVENTS as u64 + 5));
        let last = all.last().unwrap();
        assert_eq!(
            (last.number, last.kind.name()),
            (MAX_EVENTS as u64 + 6, "dead-letters-on-disk")
        );
    }

    #[test]
    fn an_event_that_was_written_is_read_again() {
        let actor: ActorName = "a".parse().unwrap();
        let digest = Digest::new([7; 32]);
        for kind in [
            EventKind::Swapped {
                actor: actor.clone(),
                generation: 2,
                from: digest,
                digest,
                queued: 3,
            },
            EventKind::Opinion {
                actor: actor.clone(),
                generation: 2,
                judge: 1,
                stands: false,
                state: "at-swap".into(),
                failure: "trapped".into(),
                failures: 1,
                why: None,
            },
            EventKind::ModuleRefused {
                module: "m".into(),
                digest: None,
                reason: "metadata".into(),
                why: "odd".into(),
            },
            EventKind::ConfigKnown,
        ] {
            let written = serde_json::to_string(&Event { number: 1, time: 2, kind }).unwrap();
            let read: Event = serde_json::from_str(&written).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), written);
        }
    }

    #[test]
    fn an_event_concerns_whom_it_names() {
        let a: ActorName = "a".parse().unwrap();
        let b: ActorName = "b".parse().unwrap();
        let failed =
            |actor: &ActorName| EventKind::Failed { actor: actor.clone(), why: "a".into() };
        let changed = EventKind::Changed {
            added: vec![b.clone(), a.clone()],
            changed: Vec::new(),
            removed: Vec::new(),
        };
        let blocked = EventKind::Blocked { actor: b.clone(), by: vec![a.clone()] };
        for kind in [failed(&a), changed, blocked] {
            assert!(kind.concerns(&a), "{kind:?}");
        }
        assert!(!failed(&b).concerns(&a));
        assert!(!EventKind::ConfigKnown.concerns(&a));
    }

    #[test]
    fn an_event_is_called_as_it_is_written() {
        let actor: ActorName = "a".parse().unwrap();
        let kinds = [
            EventKind::Paused { actor: actor.clone() },
            EventKind::RolledBack {
                actors: vec![actor],
                back: Vec::new(),
                lost_turns: 0,
                why: String::new(),
            },
            EventKind::DeadLettersOnDisk,
            EventKind::OverBudget { used: 1, limit: 1 },
        ];
        for kind in kinds {
            let written = serde_json::to_value(&kind).unwrap();
            assert_eq!(written["event"], kind.name());
            assert!(EventKind::NAMES.contains(&kind.name()));
        }
    }
}
