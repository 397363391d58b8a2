//! Halting actors between two turns, for a change that has to see what they have come to or
//! that nothing may meet half done.
//!
//! An actor in a turn is waited for before others are halted, and where one takes long, those
//! that are halted already go on meanwhile: one slow turn does not freeze its neighbours. A
//! turn that takes longer than its actor's `timeout` while somebody waits for it is cut short,
//! and its message is first in line again.

use std::{collections::BTreeSet, mem, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::oneshot,
    time::{self, Instant},
};

use super::{Inner, System};
use crate::{Actor, ActorName, Change, PortRef, Wire, actor::Command, panic::Boundary};

/// How long halted actors wait for others of their group that are in a turn, before they go on
/// and all of it is tried again: long enough for ordinary turns, short enough that what waits
/// in their mailboxes is not noticed.
const PATIENCE: Duration = Duration::from_secs(1);

/// The part of an actor's `timeout` after which it is not let go on any more: otherwise two
/// actors with long turns could miss each other for ever.
const FIRM_AFTER: u32 = 3;

/// Actors that take no turn until they are [let go on](System::go_on), or this is dropped:
/// whoever has halted them may break before it lets them go on.
#[must_use = "actors stay halted for as long as this is there"]
pub struct Halted {
    /// Those that are halted, and those that will be when their turns end.
    actors: Vec<Arc<Actor>>,
    system: System,
}

impl Drop for Halted {
    fn drop(&mut self) {
        let actors = mem::take(&mut self.actors);
        if actors.is_empty() {
            return;
        }
        let system = self.system.clone();
        let Inner { tasks, turns, .. } = &*self.system.0;
        let released = async move { system.release(actors).await };
        tasks.spawn_on(async { _ = Boundary::Change.hold(released).await }, turns);
    }
}

impl System {
    /// Halts actors before their next turns, for a change that has to see what they
    /// have come to.
    pub async fn halt(&self, actors: impl Iterator<Item = &ActorName>) -> Halted {
        let actors = actors.filter_map(|name| self.actor(name.as_str())).collect();
        self.halt_all(actors, &mut |_| {}).await
    }

    /// Halts the actors that must not meet a change half done, right before it is applied.
    /// `waits_for` is told whose turns are still waited for, as that changes. Dropping the
    /// future lets them all go on.
    ///
    /// Where an actor has to end first, since a source takes its place or the other way round,
    /// nobody is halted: it could not work off what it has.
    pub fn halt_for<'a>(
        &'a self,
        change: &Change,
        waits_for: &'a mut (dyn FnMut(&[ActorName]) + Send),
    ) -> impl Future<Output = Halted> + Send + use<'a> {
        let mut names = self.to_hold(change);
        names.extend(change.swap.iter().map(|(name, _)| name.clone()));
        if !self.of_other_kind(change).is_empty() {
            names.clear();
        }
        let actors = names.iter().filter_map(|name| self.actor(name.as_str())).collect();
        self.halt_all(actors, waits_for)
    }

    async fn halt_all(
        &self,
        actors: Vec<Arc<Actor>>,
        waits_for: &mut (dyn FnMut(&[ActorName]) + Send),
    ) -> Halted {
        let shortest = actors.iter().map(|actor| actor.settings().timeout).min();
        let firm_from = Instant::now() + shortest.unwrap_or_default() / FIRM_AFTER;
        let mut halted = Halted { actors: Vec::new(), system: self.clone() };
        let (busy, mut idle): (Vec<_>, Vec<_>) =
            actors.into_iter().partition(|actor| actor.mailbox().is_in_hand());
        let mut asked = FuturesUnordered::new();
        let mut there: Vec<Arc<Actor>> = Vec::new();
        let mut missing: BTreeSet<ActorName> = BTreeSet::new();
        // When those that are halted have waited long enough.
        let mut until = None;
        let mut next = busy;
        loop {
            if asked.is_empty() && next.is_empty() {
                next = mem::take(&mut idle);
            }
            for actor in next.drain(..) {
                missing.insert(actor.name().clone());
                halted.actors.push(Arc::clone(&actor));
                asked.push(ask(actor));
            }
            if asked.is_empty() {
                return halted;
            }
            waits_for(&missing.iter().cloned().collect::<Vec<_>>());
            let soft = until.filter(|until| *until < firm_from);
            tokio::select! {
                biased;
                Some(actor) = asked.next() => {
                    missing.remove(actor.name());
                    there.push(actor);
                    until.get_or_insert_with(|| Instant::now() + PATIENCE);
                }
                () = sleep_until(soft), if soft.is_some() => {
                    let go_on = mem::take(&mut there);
                    halted.actors.retain(|a| !go_on.iter().any(|other| Arc::ptr_eq(a, other)));
                    self.release(go_on.clone()).await;
                    idle.extend(go_on);
                    until = None;
                }
            }
        }
    }

    /// Lets halted actors take turns again.
    pub async fn go_on(&self, mut halted: Halted) {
        self.release(mem::take(&mut halted.actors)).await;
    }

    /// Halts an actor before its next turn.
    pub(super) async fn hold(&self, name: &ActorName) -> Option<Arc<Actor>> {
        Some(ask(self.actor(name.as_str())?).await)
    }

    /// The actors between which a change must not be seen half done: those that
    /// swap, and those at the ends of wires that come or go with the swap.
    ///
    /// New wires alone need no halt, since a turn goes by the wires that were in
    /// force when it began; nor does one swap alone, since it is one assignment.
    pub(super) fn to_hold(&self, change: &Change) -> BTreeSet<ActorName> {
        let mut names: BTreeSet<ActorName> =
            change.swap.iter().map(|(name, _)| name.clone()).collect();
        if !names.is_empty() {
            let connect = change.connect.iter().map(|wire| (&wire.from, &wire.to));
            let new = connect.filter(|(from, to)| !self.has_wire(from, to));
            let cut = change.cut.iter().map(|wire| (&wire.from, &wire.to));
            let ends = new.chain(cut).flat_map(|(from, to)| [from, to]);
            names.extend(ends.map(|end| end.actor.clone()));
        }
        if names.len() < 2 {
            names.clear();
        }
        names
    }

    /// Whether there is a wire between those ports.
    fn has_wire(&self, from: &PortRef, to: &PortRef) -> bool {
        let same = |wire: &Arc<Wire>| wire.from() == from && wire.to() == to;
        let sender = self.actor(from.actor.as_str());
        sender.is_some_and(|sender| sender.shared.routes.load().all().any(same))
    }
}

/// Halts an actor before its next turn. One that takes longer than its `timeout` for the turn
/// in hand has it cut short. One that stops instead takes no turns either.
async fn ask(actor: Arc<Actor>) -> Arc<Actor> {
    let patience = actor.settings().timeout;
    {
        let mut asking = pin!(is_held(&actor));
        while time::timeout(patience, &mut asking).await.is_err() {
            actor.shared.cut_short();
        }
    }
    actor
}

async fn is_held(actor: &Actor) {
    let (held, is_held) = oneshot::channel();
    if actor.commands.send(Command::Hold(held)).await.is_ok() {
        _ = is_held.await;
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
