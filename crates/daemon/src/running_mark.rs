//! The mark of a running daemon, which tells the next one how it ended.
//!
//! The mark is set before the first turn and removed at the end of a stop that has saved
//! everything. A daemon that finds one follows a crash, a kill or a power failure: the messages in
//! memory are lost, and the mark holds their number as it was last known.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use reflowd_hot_reload::{Sealed, read_own_file, seal, unseal};
use reflowd_runtime::{ActorName, EventKind, Events, System, unix_millis};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::snapshot;

/// The title of what the mark holds, with the version of its form.
const TITLE: &str = "reflowd running 1";

/// Actors that are named in the mark: those with the most messages. A reader finds the rest
/// from these.
const MAX_NAMED: usize = 100;

/// The mark, for as long as the daemon runs.
pub(crate) struct RunningMark {
    path: PathBuf,
    began: u64,
    last: Option<Queued>,
}

/// The messages that a crash would lose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Queued {
    /// Messages in mailboxes, in hand and on wires.
    messages: u64,
    /// The actors that hold them.
    actors: Vec<ActorName>,
}

#[derive(Deserialize, Serialize)]
struct Mark {
    /// When the daemon began, in milliseconds since the Unix epoch.
    began: u64,
    /// When this was written.
    seen: u64,
    #[serde(flatten)]
    queued: Queued,
}

impl Queued {
    fn of(system: &System) -> Self {
        let mut of: BTreeMap<ActorName, u64> = BTreeMap::new();
        for actor in system.actors() {
            let counts = actor.mailbox().counts();
            *of.entry(actor.name().clone()).or_default() += counts.queued + counts.in_flight;
        }
        for wire in system.wires() {
            *of.entry(wire.to().actor.clone()).or_default() += wire.counts().pending;
        }
        let mut of: Vec<_> = of.into_iter().filter(|(_, messages)| *messages > 0).collect();
        of.sort_by_key(|(_, messages)| std::cmp::Reverse(*messages));
        Self {
            messages: of.iter().map(|(_, messages)| messages).sum(),
            actors: of.into_iter().take(MAX_NAMED).map(|(actor, _)| actor).collect(),
        }
    }
}

impl RunningMark {
    /// Sets the mark. A daemon that has left its own is told of as an event.
    pub(crate) fn set(data: &Path, events: &Events) -> Self {
        let path = data.join("running");
        if let Some(event) = left(&path) {
            events.record(event);
        }
        let mut mark = Self { path, began: unix_millis(), last: None };
        mark.write(Queued::default());
        mark
    }

    /// Updates the number of messages that a crash would lose.
    pub(crate) fn update(&mut self, system: &System) {
        self.write(Queued::of(system));
    }

    fn write(&mut self, queued: Queued) {
        if self.last.as_ref() == Some(&queued) {
            return;
        }
        let text = Mark { began: self.began, seen: unix_millis(), queued: queued.clone() };
        let new = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut open = OpenOptions::new();
            let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            let text = serde_json::to_vec(&text).expect("numbers and names can be written");
            seal(TITLE, &text, &mut file)?;
            fs::rename(&new, &self.path)
        };
        match write() {
            Ok(()) => self.last = Some(queued),
            // A full disk is reported by everything else that writes to it.
            Err(_) => _ = fs::remove_file(&new),
        }
    }

    /// Removes the mark: everything is saved.
    pub(crate) fn take_away(self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %self.path.display(), %error, "the next start will take this stop for a crash");
        }
    }
}

/// Reads the mark of a daemon that did not stop by itself; `None` if there is none.
fn left(path: &Path) -> Option<EventKind> {
    let text = match read_own_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        text => text.ok(),
    };
    let content = text.as_deref().and_then(|text| match unseal(text) {
        Ok(Sealed { title: TITLE, content }) => serde_json::from_slice::<Mark>(content).ok(),
        Ok(_) | Err(_) => None,
    });
    let states = format!(
        "what changed in states within the {} s before its end is gone too",
        snapshot::EVERY.as_secs()
    );
    let Some(Mark { began: _, seen, queued: Queued { messages, actors } }) = content else {
        // A power failure has cut it. Its presence says enough.
        let why = format!(
            "the daemon before this one did not stop by itself; how many messages were queued is not known, and they are gone; {states}"
        );
        warn!("{why}");
        return Some(EventKind::UncleanStop { seen: 0, messages: 0, actors: Vec::new(), why });
    };
    let why = format!(
        "the daemon before this one did not stop by itself, and what its mailboxes held is gone: {messages} messages when it was last looked at; {states}"
    );
    warn!(messages, "{why}");
    Some(EventKind::UncleanStop { seen, messages, actors, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_is_left_is_told_and_one_that_is_taken_away_is_not() {
        let data = tempfile::tempdir().unwrap();
        let names = |events: &Events| {
            events.since(0).0.iter().map(|event| event.kind.name()).collect::<Vec<_>>()
        };
        let events = Events::default();
        let mut mark = RunningMark::set(data.path(), &events);
        assert!(names(&events).is_empty());
        mark.write(Queued { messages: 7, actors: vec!["a".parse().unwrap()] });
        drop(mark);
        let mark = RunningMark::set(data.path(), &events);
        let (all, _) = events.since(0);
        let EventKind::UncleanStop { messages, actors, why, .. } = &all[0].kind else {
            panic!("{all:?}")
        };
        assert_eq!((*messages, actors.len()), (7, 1));
        assert!(why.contains("7 messages"), "{why}");
        mark.take_away();
        let events = Events::default();
        fs::write(data.path().join("running"), "half a ma").unwrap();
        RunningMark::set(data.path(), &events).take_away();
        assert_eq!(names(&events), ["unclean-stop"]);
        let events = Events::default();
        drop(RunningMark::set(data.path(), &events));
        assert!(names(&events).is_empty());
    }
}
