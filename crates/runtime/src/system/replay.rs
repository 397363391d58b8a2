//! How dead letters come back to the mailboxes that they were for.

use serde::Serialize;
use tokio::time::Instant;

use super::System;
use crate::{
    ActorName, DeadLetter, Entry, Filter, Overflow, PortName, PortRef, SendError,
    dead_letter::Reason, mailbox::PushError,
};

/// What came of a replay.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Replayed {
    /// Letters that are messages again.
    pub replayed: u64,
    /// Those that are still dead letters, by port and reason.
    pub stayed: Vec<Stayed>,
    /// Why the replay ended early, where it did: a letter could not be marked as gone on
    /// disk, and would be back after a restart.
    pub trouble: Option<String>,
}

/// Letters for one port that were not replayed.
#[derive(Clone, Debug, Serialize)]
pub struct Stayed {
    /// The actor.
    pub actor: ActorName,
    /// Its port.
    pub port: PortName,
    /// Why, for programs.
    pub reason: Staying,
    /// Why, for people.
    pub why: String,
    /// How many.
    pub letters: u64,
    /// The number of the first.
    pub first: u64,
}

/// Why a letter was not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Staying {
    /// There is no room in the mailbox; there may be later.
    Full,
    /// The actor or the daemon is stopping.
    Stopping,
    /// The actor or the port is gone, takes messages of another type, or none at all.
    NoTarget,
    /// Its data, accepted by an earlier version, is not strict JSON.
    Unfit,
}

impl System {
    /// Puts the dead letters that fit at the tail of the mailboxes that they were for, in
    /// their own order, and takes away those that were accepted. Blocks.
    ///
    /// A letter that finds a mailbox full stays, and so do all later ones for that actor,
    /// whatever its overflow rule: a replay drops nothing. A crash in the middle may leave
    /// the one letter in hand both accepted and dead.
    pub fn replay(&self, filter: Filter) -> Replayed {
        let dead = self.dead_letters();
        let _choosing = dead.choose();
        let mut replayed = Replayed::default();
        for letter in dead.letters(filter) {
            let behind = |s: &&mut Stayed| s.actor == letter.actor && s.reason == Staying::Full;
            if let Some(full) = replayed.stayed.iter_mut().find(behind) {
                let why = full.why.clone();
                stay(&mut replayed.stayed, &letter, Staying::Full, why);
                continue;
            }
            if let Err((reason, why)) = self.revive(&letter) {
                stay(&mut replayed.stayed, &letter, reason, why);
                continue;
            }
            replayed.replayed += 1;
            if let (_, Err(error)) = dead.remove(&[letter.number]) {
                let number = letter.number;
                replayed.trouble = Some(format!(
                    "letter {number} was replayed and could not be marked so: {error}: {}; until it is, a restart brings it back",
                    error.source
                ));
                break;
            }
        }
        replayed
    }

    /// Gives a letter's message to the mailbox that it was for.
    fn revive(&self, letter: &DeadLetter) -> Result<(), (Staying, String)> {
        let old = &letter.envelope;
        if matches!(letter.reason, Reason::Unreadable(_)) {
            let why = format!(
                "`{}` has read it and takes no messages; `reflowd dead show {}` prints it",
                letter.actor, letter.number
            );
            return Err((Staying::NoTarget, why));
        }
        old.message.check().map_err(|fault| (Staying::Unfit, fault.to_string()))?;
        let to = PortRef { actor: letter.actor.clone(), port: old.port.clone() };
        let entered = self.enter(&to, old.message.clone(), old.trace.clone());
        let (actor, mut envelope) = entered.map_err(|error| match &error {
            SendError::Draining { .. } => (Staying::Stopping, error.to_string()),
            SendError::OverBudget { .. } => (Staying::Full, error.to_string()),
            SendError::NoActor { .. }
            | SendError::NoPort { .. }
            | SendError::Type { .. }
            | SendError::Full { .. } => (Staying::NoTarget, error.to_string()),
        })?;
        // A new delivery that belongs to the same messages as before.
        envelope.correlation = old.correlation;
        envelope.links = old.links.clone();
        envelope.replayed = true;
        self.0.sinks.waits.more(old.correlation);
        let block = Some(Overflow::Block);
        let pushed = actor.mailbox().push(envelope, block, Entry::Replay, Instant::now());
        let Err(error) = pushed else { return Ok(()) };
        self.0.sinks.waits.less(old.correlation);
        match error {
            PushError::Full(envelope, room) => {
                actor.mailbox().unblock(&envelope.port, &room);
                let why = format!("the mailbox of `{}` is full; replay the rest later", to.actor);
                Err((Staying::Full, why))
            }
            PushError::Dropped(_) => unreachable!("a replay asks for no drop"),
            PushError::Closed(_) => Err((Staying::Stopping, format!("`{}` is stopping", to.actor))),
        }
    }
}

/// Counts a letter that stays.
fn stay(stayed: &mut Vec<Stayed>, letter: &DeadLetter, reason: Staying, why: String) {
    let port = &letter.envelope.port;
    let same = |s: &&mut Stayed| s.actor == letter.actor && s.port == *port && s.reason == reason;
    match stayed.iter_mut().find(same) {
        Some(known) => known.letters += 1,
        None => stayed.push(Stayed {
            actor: letter.actor.clone(),
            port: port.clone(),
            reason,
            why,
            letters: 1,
            first: letter.number,
        }),
    }
}
