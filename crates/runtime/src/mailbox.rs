//! The bounded queue in front of an actor.
//!
//! A message that is in hand stays in the mailbox until it has been processed or
//! given up, so a retry, a lost engine or a cancelled turn has nothing to put
//! back, and the order cannot change. It is in hand from [`Mailbox::take`] on,
//! through all retries, and nothing pushes or sends it out meanwhile. Released,
//! because the actor gave up for now or runs another generation, it waits again
//! like any other. The books are kept under the same lock as
//! the queue: whoever looks, they balance.
//!
//! A mailbox has one lane, or with [`Trigger::All`] one lane per inport, each
//! with the bounds of the whole, so that the branches of a fork cannot starve
//! each other at the join.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use tokio::{sync::Notify, time::Instant};

use crate::{
    Budget, Envelope, Message, MessageId, Overflow, PortName, Trigger, budget::Share,
    envelope::Lineage,
};

/// The queue that belongs to one actor and outlives all its engines.
pub struct Mailbox {
    inner: Mutex<Inner>,
    /// Wakes the actor: at most one permit, given when the mailbox can be taken from.
    ready: Notify,
}

struct Inner {
    lanes: Vec<Lane>,
    bounds: Bounds,
    /// With [`Trigger::All`], the inports that a join waits for.
    join: Vec<PortName>,
    /// Only grows; orders messages across lanes.
    arrivals: u64,
    counts: Counts,
    /// What all that is here takes of the system's budget.
    share: Share,
    /// Whether the actor waits to be woken.
    waiting: bool,
    closed: bool,
}

/// What a mailbox holds at most, and what starts a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Messages, per lane.
    pub messages: usize,
    /// Bytes, per lane. A larger message is accepted alone.
    pub bytes: u64,
    /// What happens to a message that finds its lane full.
    pub overflow: Overflow,
    /// One lane, or one per inport.
    pub trigger: Trigger,
}

struct Lane {
    /// The inport, where there is a lane for each.
    port: Option<PortName>,
    queue: VecDeque<Slot>,
    bytes: u64,
    /// Senders that wait for room, first come, first served.
    room: Arc<Notify>,
    blocked: usize,
}

struct Slot {
    arrival: u64,
    arrived: Instant,
    in_hand: bool,
    envelope: Envelope,
}

/// How a message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// From another actor.
    Wire,
    /// From a connector.
    Connector,
    /// By the admin API.
    Api,
    /// From the dead letters.
    Replay,
    /// From what an earlier process saved when it stopped.
    Restore,
}

impl Entry {
    /// All ways in, in the order of [`Counts::accepted`].
    pub const ALL: [Self; 5] =
        [Self::Wire, Self::Connector, Self::Api, Self::Replay, Self::Restore];

    /// One word for metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Connector => "connector",
            Self::Api => "api",
            Self::Replay => "replay",
            Self::Restore => "restore",
        }
    }
}

/// One mailbox's books. The unit is one delivery.
///
/// `accepted = completed + dead_lettered + dropped + in_flight + queued + saved`, always:
/// `in_flight` and `queued` are found by walking the queue, not by counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Taken in, by [`Entry`].
    pub accepted: [u64; Entry::ALL.len()],
    /// Left with a turn that succeeded, or whose error went to the `error` port as an answer.
    pub completed: u64,
    /// Left as dead letters.
    pub dead_lettered: u64,
    /// Pushed out by newer ones.
    pub dropped: u64,
    /// Left for the next process, which a stop has written them down for.
    pub saved: u64,
    /// In hand, those between two attempts included.
    pub in_flight: u64,
    /// Waiting.
    pub queued: u64,
    /// Bytes of what is queued and in hand.
    pub bytes: u64,
}

impl Counts {
    /// All that came in.
    #[must_use]
    pub fn accepted_total(&self) -> u64 {
        self.accepted.iter().sum()
    }

    /// Whether nothing is lost or doubled.
    #[must_use]
    pub fn balanced(&self) -> bool {
        self.accepted_total()
            == self.completed
                + self.dead_lettered
                + self.dropped
                + self.saved
                + self.in_flight
                + self.queued
    }

    /// Adds another mailbox's books to these.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.accepted.iter_mut().zip(other.accepted) {
            *mine += theirs;
        }
        self.completed += other.completed;
        self.dead_lettered += other.dead_lettered;
        self.dropped += other.dropped;
        self.saved += other.saved;
        self.in_flight += other.in_flight;
        self.queued += other.queued;
        self.bytes += other.bytes;
    }
}

/// A message was taken in.
#[derive(Debug, Default)]
pub(crate) struct Pushed {
    /// What it pushed out, with [`Overflow::DropOldest`].
    pub(crate) dropped: Option<Envelope>,
}

/// A message was not taken in; it is handed back.
#[derive(Debug)]
pub(crate) enum PushError {
    /// No room, and the sender is to wait. `room` tells when to try again.
    Full(Envelope, Arc<Notify>),
    /// No room, and the newest is to be dropped: this one.
    Dropped(Envelope),
    /// The actor has stopped.
    Closed(Envelope),
}

/// A sender's place in the line for room, until it tries again or gives up.
pub(crate) struct InLine<'a> {
    mailbox: &'a Mailbox,
    port: PortName,
    room: Arc<Notify>,
    tries_again: bool,
}

impl<'a> InLine<'a> {
    /// The place that [`PushError::Full`] has given.
    pub(crate) fn new(mailbox: &'a Mailbox, port: PortName, room: Arc<Notify>) -> Self {
        Self { mailbox, port, room, tries_again: false }
    }

    /// Returns when it is time to try again. Cancel at will: then the next in line is told.
    pub(crate) async fn wait(mut self) {
        self.room.notified().await;
        // What it does not take, whoever takes or leaves something tells the next of. Two
        // that told each other would never come to an end.
        self.tries_again = true;
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.mailbox.leave_line(&self.port, &self.room, !self.tries_again);
    }
}

/// What a turn is about to work on.
#[derive(Debug)]
pub(crate) struct Taken {
    /// One message, or one per inport for a join.
    pub(crate) payload: Vec<(PortName, Message)>,
    /// The first of them, by its id.
    pub(crate) first: MessageId,
    /// What the outputs inherit from them.
    pub(crate) lineage: Lineage,
    /// When the first of them arrived here.
    pub(crate) arrived: Instant,
    /// When the last of them did, so that there could be a turn.
    pub(crate) complete: Instant,
}

/// How messages in hand leave the mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    DeadLettered,
}

impl Mailbox {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let lanes = match bounds.trigger {
            Trigger::Any => vec![Lane::new(None)],
            Trigger::All => Vec::new(),
        };
        Self {
            inner: Mutex::new(Inner {
                lanes,
                bounds,
                join: Vec::new(),
                arrivals: 0,
                counts: Counts::default(),
                share: Share::default(),
                waiting: false,
                closed: false,
            }),
            ready: Notify::new(),
        }
    }

    /// The same, of which all that it holds counts in a budget.
    pub(crate) fn within(mut self, budget: &Arc<Budget>) -> Self {
        self.inner.get_mut().share = Share::of(budget);
        self
    }

    /// Takes a message in that arrived just now, or hands it back. `overflow` is the
    /// wire's own way, where it has one.
    #[expect(clippy::result_large_err, reason = "the error is the message, handed back")]
    pub(crate) fn push(
        &self,
        envelope: Envelope,
        overflow: Option<Overflow>,
        entry: Entry,
        arrived: Instant,
    ) -> Result<Pushed, PushError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(PushError::Closed(envelope));
        }
        let bounds = inner.bounds;
        let at = inner.lane_for(&envelope.port);
        let lane = &mut inner.lanes[at];
        let mut pushed = Pushed::default();
        if !lane.has_room(bounds, envelope.message.encoded_len()) {
            match overflow.unwrap_or(bounds.overflow) {
                Overflow::Block => {
                    lane.blocked += 1;
                    return Err(PushError::Full(envelope, Arc::clone(&lane.room)));
                }
                Overflow::DropNewest => return Err(PushError::Dropped(envelope)),
                Overflow::DropOldest => match lane.drop_oldest() {
                    Some(oldest) => {
                        inner.counts.dropped += 1;
                        inner.share.less(oldest.message.encoded_len());
                        pushed.dropped = Some(oldest);
                    }
                    // Everything here is in hand, and what is in hand is never dropped.
                    None => return Err(PushError::Dropped(envelope)),
                },
            }
        }
        inner.counts.accepted[entry as usize] += 1;
        inner.accept(at, envelope, arrived);
        self.wake(inner);
        Ok(pushed)
    }

    /// A sender that was told to wait does not.
    ///
    /// Whoever got [`PushError::Full`] calls this once before it pushes again, or takes
    /// its place in the line.
    pub(crate) fn unblock(&self, port: &PortName, room: &Arc<Notify>) {
        self.leave_line(port, room, false);
    }

    fn leave_line(&self, port: &PortName, room: &Arc<Notify>, gives_up: bool) {
        let mut inner = self.inner.lock();
        let (bounds, closed) = (inner.bounds, inner.closed);
        let lane = inner.lane_for(port);
        let lane = &mut inner.lanes[lane];
        // The lanes were sorted anew since: whoever is still in the old line has to leave
        // it too, and only one who was about to join it was told.
        if !Arc::ptr_eq(&lane.room, room) {
            room.notify_one();
            return;
        }
        lane.blocked = lane.blocked.saturating_sub(1);
        // It may have been told of room that it does not use now.
        if lane.blocked > 0 && (closed || (gives_up && lane.has_room(bounds, 0))) {
            lane.room.notify_one();
        }
    }

    /// The messages for the next turn, which stay here, in hand, until
    /// [`finish`](Self::finish). Gives the same ones again while any are in hand.
    pub(crate) fn take(&self) -> Option<Taken> {
        let mut inner = self.inner.lock();
        let taken = inner.take();
        inner.waiting = taken.is_none();
        taken
    }

    /// The messages in hand, in the order in which a turn takes them.
    pub(crate) fn in_hand(&self) -> Vec<Envelope> {
        let mut inner = self.inner.lock();
        let heads = inner.heads(true).into_iter().map(|slot| slot.envelope.clone());
        heads.collect()
    }

    /// Whether anything is in hand.
    pub(crate) fn is_in_hand(&self) -> bool {
        let in_hand = |lane: &Lane| lane.queue.front().is_some_and(|slot| slot.in_hand);
        self.inner.lock().lanes.iter().any(in_hand)
    }

    /// What is in hand leaves.
    pub(crate) fn finish(&self, outcome: Outcome) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        for lane in &mut inner.lanes {
            while lane.queue.front().is_some_and(|slot| slot.in_hand) {
                let slot = lane.queue.pop_front().expect("the front was just seen");
                let bytes = slot.envelope.message.encoded_len();
                lane.bytes -= bytes as u64;
                inner.share.less(bytes);
                match outcome {
                    Outcome::Completed => inner.counts.completed += 1,
                    Outcome::DeadLettered => inner.counts.dead_lettered += 1,
                }
                if lane.blocked > 0 {
                    lane.room.notify_one();
                }
            }
        }
    }

    /// What is in hand is so no longer: it waits again, in its place.
    pub(crate) fn release(&self) {
        for lane in &mut self.inner.lock().lanes {
            lane.queue.iter_mut().for_each(|slot| slot.in_hand = false);
        }
    }

    /// Returns when there may be something to take.
    pub(crate) async fn ready(&self) {
        self.ready.notified().await;
    }

    /// New bounds. What is over them stays; a change of trigger sorts the lanes anew.
    pub(crate) fn set_bounds(&self, bounds: Bounds) {
        let mut inner = self.inner.lock();
        let retrigger = inner.bounds.trigger != bounds.trigger;
        inner.bounds = bounds;
        if retrigger {
            inner.sort_lanes();
        }
        for lane in &inner.lanes {
            lane.room.notify_waiters();
            // For one who is about to wait.
            lane.room.notify_one();
        }
        self.wake(inner);
    }

    /// The inports that a join waits for.
    pub(crate) fn set_join(&self, ports: Vec<PortName>) {
        let mut inner = self.inner.lock();
        inner.join = ports;
        self.wake(inner);
    }

    /// Takes out what waits for `port`, or everything, but what is in hand, and
    /// counts it as dead letters.
    pub(crate) fn expel(&self, port: Option<&PortName>) -> Vec<Envelope> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let mut out = Vec::new();
        for lane in &mut inner.lanes {
            let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut lane.queue).into_iter().partition(|slot| {
                    !slot.in_hand && port.is_none_or(|port| slot.envelope.port == *port)
                });
            lane.queue = kept;
            for slot in gone {
                let bytes = slot.envelope.message.encoded_len();
                lane.bytes -= bytes as u64;
                inner.share.less(bytes);
                inner.counts.dead_lettered += 1;
                out.push((slot.arrival, slot.envelope));
                if lane.blocked > 0 {
                    lane.room.notify_one();
                }
            }
        }
        out.sort_by_key(|(arrival, _)| *arrival);
        out.into_iter().map(|(_, envelope)| envelope).collect()
    }

    /// Whether a turn could begin, or is to be tried again.
    pub(crate) fn can_take(&self) -> bool {
        self.inner.lock().can_take()
    }

    /// Whether a message of that length for `port` would not have to wait.
    pub(crate) fn would_take(&self, port: &PortName, bytes: usize) -> bool {
        let mut inner = self.inner.lock();
        let (bounds, closed) = (inner.bounds, inner.closed);
        let lane = inner.lane_for(port);
        closed || inner.lanes[lane].has_room(bounds, bytes)
    }

    /// Whether a message of that length for `port` would be taken, neither waiting nor
    /// dropped, by the wire's own rule or the mailbox's.
    pub(crate) fn would_keep(
        &self,
        port: &PortName,
        bytes: usize,
        overflow: Option<Overflow>,
    ) -> bool {
        let mut inner = self.inner.lock();
        let (bounds, closed) = (inner.bounds, inner.closed);
        let lane = inner.lane_for(port);
        let makes_room = overflow.unwrap_or(bounds.overflow) == Overflow::DropOldest;
        !closed && (makes_room || inner.lanes[lane].has_room(bounds, bytes))
    }

    /// All that is here, in the order of its arrival, what is in hand included. Nothing
    /// comes in any more.
    pub(crate) fn seal(&self) -> Vec<Envelope> {
        let mut inner = self.inner.lock();
        inner.closed = true;
        let mut slots: Vec<_> = inner.lanes.iter().flat_map(|lane| &lane.queue).collect();
        slots.sort_by_key(|slot| slot.arrival);
        slots.into_iter().map(|slot| slot.envelope.clone()).collect()
    }

    /// All that is here has been saved, and leaves.
    pub(crate) fn saved(&self) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        for lane in &mut inner.lanes {
            inner.counts.saved += lane.queue.len() as u64;
            lane.queue.clear();
            lane.bytes = 0;
        }
        inner.share.nothing();
    }

    /// Puts messages before all that is here, in their order. No bound holds for them:
    /// they were accepted before. No turn may have begun.
    pub(crate) fn restore(&self, envelopes: Vec<Envelope>, now: Instant) {
        let mut inner = self.inner.lock();
        let count = envelopes.len() as u64;
        inner.counts.accepted[Entry::Restore as usize] += count;
        inner.arrivals += count;
        for lane in &mut inner.lanes {
            lane.queue.iter_mut().for_each(|slot| slot.arrival += count);
        }
        for (envelope, arrival) in envelopes.into_iter().rev().zip((1..=count).rev()) {
            let lane = inner.lane_for(&envelope.port);
            let bytes = envelope.message.encoded_len();
            inner.share.more(bytes);
            let lane = &mut inner.lanes[lane];
            lane.bytes += bytes as u64;
            lane.queue.push_front(Slot { arrival, arrived: now, in_hand: false, envelope });
        }
        self.wake(inner);
    }

    /// Nothing comes in any more. Senders that wait are woken to see it.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        for lane in &inner.lanes {
            lane.room.notify_waiters();
            lane.room.notify_one();
        }
    }

    /// Takes messages again after [`close`](Self::close).
    pub(crate) fn reopen(&self) {
        self.inner.lock().closed = false;
    }

    /// The books as they are now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let inner = self.inner.lock();
        let mut counts = inner.counts;
        for lane in &inner.lanes {
            let in_hand = lane.queue.iter().filter(|slot| slot.in_hand).count() as u64;
            counts.in_flight += in_hand;
            counts.queued += lane.queue.len() as u64 - in_hand;
            counts.bytes += lane.bytes;
        }
        counts
    }

    /// Messages here, in hand or waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().lanes.iter().map(|lane| lane.queue.len()).sum()
    }

    /// Whether nothing is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages there are for each port, in hand or waiting.
    #[must_use]
    pub fn queued_by_port(&self) -> Vec<(PortName, usize)> {
        let inner = self.inner.lock();
        let mut ports: Vec<(PortName, usize)> = Vec::new();
        for slot in inner.lanes.iter().flat_map(|lane| &lane.queue) {
            match ports.iter_mut().find(|(port, _)| *port == slot.envelope.port) {
                Some((_, count)) => *count += 1,
                None => ports.push((slot.envelope.port.clone(), 1)),
            }
        }
        ports
    }

    /// A join that cannot go on: a full inport beside an empty one that it waits for.
    pub(crate) fn stalled(&self) -> Option<(PortName, PortName)> {
        let inner = self.inner.lock();
        if inner.bounds.trigger == Trigger::Any {
            return None;
        }
        let full = inner.lanes.iter().find(|lane| !lane.has_room(inner.bounds, 0))?;
        let holds = |port: &PortName| {
            inner.lanes.iter().any(|l| l.port.as_ref() == Some(port) && !l.queue.is_empty())
        };
        let empty = inner.join.iter().find(|port| !holds(port))?;
        Some((full.port.clone()?, empty.clone()))
    }

    /// Wakes the actor if it waits and has something to take.
    fn wake(&self, mut inner: MutexGuard<'_, Inner>) {
        if inner.waiting && inner.can_take() {
            inner.waiting = false;
            drop(inner);
            self.ready.notify_one();
        }
    }
}

impl Inner {
    fn accept(&mut self, lane: usize, envelope: Envelope, arrived: Instant) {
        self.arrivals += 1;
        let bytes = envelope.message.encoded_len();
        self.share.more(bytes);
        let lane = &mut self.lanes[lane];
        lane.bytes += bytes as u64;
        lane.queue.push_back(Slot { arrival: self.arrivals, arrived, in_hand: false, envelope });
        // Several senders may wait and one pop wakes one; pass the word on while there is room.
        if lane.blocked > 0 && lane.has_room(self.bounds, 0) {
            lane.room.notify_one();
        }
    }

    fn lane_for(&mut self, port: &PortName) -> usize {
        if self.bounds.trigger == Trigger::Any {
            return 0;
        }
        if let Some(at) = self.lanes.iter().position(|lane| lane.port.as_ref() == Some(port)) {
            return at;
        }
        self.lanes.push(Lane::new(Some(port.clone())));
        self.lanes.len() - 1
    }

    fn can_take(&self) -> bool {
        match self.bounds.trigger {
            Trigger::Any => !self.lanes[0].queue.is_empty(),
            Trigger::All => {
                let filled = |port: &PortName| {
                    self.lanes
                        .iter()
                        .any(|lane| lane.port.as_ref() == Some(port) && !lane.queue.is_empty())
                };
                self.join.iter().all(filled) && self.lanes.iter().any(|l| !l.queue.is_empty())
            }
        }
    }

    fn take(&mut self) -> Option<Taken> {
        // Most mailboxes have one lane, and there nothing has to be gathered.
        if let [lane] = &mut self.lanes[..]
            && lane.port.is_none()
        {
            let slot = lane.queue.front_mut()?;
            slot.in_hand = true;
            return Some(Taken {
                payload: vec![slot.input()],
                first: slot.envelope.id,
                lineage: Lineage::of(&slot.envelope, &[]),
                arrived: slot.arrived,
                complete: slot.arrived,
            });
        }
        let again = self.lanes.iter().any(|l| l.queue.front().is_some_and(|slot| slot.in_hand));
        if !again && !self.can_take() {
            return None;
        }
        let mut heads = self.heads(again);
        heads.iter_mut().for_each(|slot| slot.in_hand = true);
        let arrived = heads.iter().map(|slot| slot.arrived).min()?;
        let complete = heads.iter().map(|slot| slot.arrived).max()?;
        let payload = heads.iter().map(|slot| slot.input()).collect();
        let envelopes: Vec<&Envelope> = heads.iter().map(|slot| &slot.envelope).collect();
        let (first, others) = envelopes.split_first()?;
        let lineage = Lineage::of(first, others);
        Some(Taken { payload, first: first.id, lineage, arrived, complete })
    }

    /// The heads of all lanes, or of those in hand. The first required port gives
    /// the correlation, so it comes first.
    fn heads(&mut self, in_hand: bool) -> Vec<&mut Slot> {
        let join = &self.join;
        let rank = |port: &PortName| join.iter().position(|p| p == port).unwrap_or(usize::MAX);
        let heads = self.lanes.iter_mut().filter_map(|lane| lane.queue.front_mut());
        let mut heads: Vec<_> = heads.filter(|slot| !in_hand || slot.in_hand).collect();
        heads.sort_by_key(|slot| rank(&slot.envelope.port));
        heads
    }

    /// Sorts everything into the lanes of the present trigger, by arrival.
    fn sort_lanes(&mut self) {
        let old = std::mem::take(&mut self.lanes);
        let mut slots: Vec<Slot> = Vec::new();
        for lane in old {
            // Who waited for room in a lane that is no more looks again.
            lane.room.notify_waiters();
            lane.room.notify_one();
            slots.extend(lane.queue);
        }
        slots.sort_by_key(|slot| slot.arrival);
        if self.bounds.trigger == Trigger::Any {
            self.lanes.push(Lane::new(None));
        }
        for mut slot in slots {
            slot.in_hand = false;
            let lane = self.lane_for(&slot.envelope.port);
            let lane = &mut self.lanes[lane];
            lane.bytes += slot.envelope.message.encoded_len() as u64;
            lane.queue.push_back(slot);
        }
    }
}

impl Slot {
    /// The message as a turn gets it.
    fn input(&self) -> (PortName, Message) {
        (self.envelope.port.clone(), self.envelope.message.clone())
    }
}

impl Lane {
    fn new(port: Option<PortName>) -> Self {
        Self { port, queue: VecDeque::new(), bytes: 0, room: Arc::new(Notify::new()), blocked: 0 }
    }

    fn has_room(&self, bounds: Bounds, bytes: usize) -> bool {
        self.queue.is_empty()
            || (self.queue.len() < bounds.messages && self.bytes + bytes as u64 <= bounds.bytes)
    }

    fn drop_oldest(&mut self) -> Option<Envelope> {
        let at = self.queue.iter().position(|slot| !slot.in_hand)?;
        let slot = self.queue.remove(at)?;
        self.bytes -= slot.envelope.message.encoded_len() as u64;
        Some(slot.envelope)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod schedules;
