//! The way from an outport to an inport, and what waits on it.
//!
//! A wire never makes its sender wait within a turn: what the mailbox at its end
//! does not take stays on the wire, in order, and the actor starts no further
//! turn until its wires are empty. So pressure travels back to the source and a
//! full branch does not hold up its siblings.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::{sync::Notify, time::Instant};

use crate::{
    Budget, Entry, Envelope, Mailbox, Overflow, PortName, PortRef, SpanSink,
    budget::Share,
    dead_letter::{DeadLetters, Reason},
    mailbox::{InLine, PushError},
    waits::Waits,
};

/// One wire, for as long as the configuration has it.
pub struct Wire {
    from: PortRef,
    to: PortRef,
    target: WireTarget,
    entry: Entry,
    sinks: Sinks,
    flow: Mutex<WireFlow>,
}

/// What a wire needs to know of the actor at its end.
#[derive(Clone)]
pub(crate) struct WireTarget {
    pub(crate) mailbox: Arc<Mailbox>,
    /// Hops after which a message is taken for a runaway loop.
    pub(crate) max_hops: Arc<AtomicU32>,
}

/// Where messages go that cannot go on, who waits for an answer, what all that waits may
/// take, and who collects spans.
#[derive(Clone)]
pub(crate) struct Sinks {
    pub(crate) dead: Arc<DeadLetters>,
    pub(crate) waits: Arc<Waits>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) spans: Option<Arc<dyn SpanSink>>,
}

#[derive(Default)]
struct WireFlow {
    /// The wire's own way with a full mailbox, where it differs from the actor's.
    overflow: Option<Overflow>,
    pending: VecDeque<Envelope>,
    /// What waits takes of the system's budget.
    share: Share,
    counts: WireCounts,
}

/// One wire's books: `emitted = accepted + refused + saved + pending`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WireCounts {
    /// Messages that turns, or a source, have put on the wire.
    pub emitted: u64,
    /// Those that the mailbox at its end took.
    pub accepted: u64,
    /// Those that the mailbox's overflow rule dropped.
    pub refused_overflow: u64,
    /// Those that had made too many hops.
    pub refused_hops: u64,
    /// Those that found the actor gone.
    pub refused_gone: u64,
    /// Those that waited when the daemon stopped, and were written down for the next process.
    pub saved: u64,
    /// Those that wait on the wire now.
    pub pending: u64,
}

impl WireCounts {
    /// All that the far end did not take.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refused_overflow + self.refused_hops + self.refused_gone
    }

    /// Whether nothing is lost or doubled.
    #[must_use]
    pub fn balanced(&self) -> bool {
        self.emitted == self.accepted + self.refused_total() + self.saved + self.pending
    }

    /// Adds another wire's books to these.
    pub fn add(&mut self, other: &Self) {
        self.emitted += other.emitted;
        self.accepted += other.accepted;
        self.refused_overflow += other.refused_overflow;
        self.refused_hops += other.refused_hops;
        self.refused_gone += other.refused_gone;
        self.saved += other.saved;
        self.pending += other.pending;
    }
}

impl Wire {
    pub(crate) fn new(
        from: PortRef,
        to: PortRef,
        target: WireTarget,
        overflow: Option<Overflow>,
        entry: Entry,
        sinks: Sinks,
    ) -> Self {
        let share = Share::of(&sinks.budget);
        let flow = Mutex::new(WireFlow { overflow, share, ..WireFlow::default() });
        Self { from, to, target, entry, sinks, flow }
    }

    /// The sending port.
    #[must_use]
    pub fn from(&self) -> &PortRef {
        &self.from
    }

    /// The receiving port.
    #[must_use]
    pub fn to(&self) -> &PortRef {
        &self.to
    }

    /// The wire's own way with a full mailbox.
    #[must_use]
    pub fn overflow(&self) -> Option<Overflow> {
        self.flow.lock().overflow
    }

    pub(crate) fn set_overflow(&self, overflow: Option<Overflow>) {
        self.flow.lock().overflow = overflow;
    }

    /// Whether the wire ends at this very mailbox.
    pub(crate) fn ends_at(&self, mailbox: &Arc<Mailbox>) -> bool {
        Arc::ptr_eq(&self.target.mailbox, mailbox)
    }

    /// The books as they are now.
    #[must_use]
    pub fn counts(&self) -> WireCounts {
        let flow = self.flow.lock();
        WireCounts { pending: flow.pending.len() as u64, ..flow.counts }
    }

    /// Messages that wait on the wire.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.flow.lock().pending.len()
    }

    /// Takes a message from a turn or a source. True when it has to wait on the wire.
    pub(crate) fn emit(&self, envelope: Envelope, now: Instant) -> bool {
        let mut flow = self.flow.lock();
        flow.counts.emitted += 1;
        self.sinks.waits.more(envelope.correlation);
        if flow.pending.is_empty() {
            match self.hand_over(&mut flow, envelope, now) {
                None => return false,
                Some((envelope, room)) => {
                    self.target.mailbox.unblock(&envelope.port, &room);
                    flow.wait(envelope);
                }
            }
        } else {
            flow.wait(envelope);
        }
        true
    }

    /// Whether a message of that length would be in the mailbox at once, and none dropped
    /// that was to be kept.
    pub(crate) fn would_keep(&self, bytes: usize) -> bool {
        let flow = self.flow.lock();
        flow.pending.is_empty()
            && self.target.mailbox.would_keep(&self.to.port, bytes, flow.overflow)
    }

    /// Returns when nothing waits on the wire. Cancel at will: nothing is lost.
    pub(crate) async fn drain(&self) {
        loop {
            let line = {
                let mut flow = self.flow.lock();
                let Some(envelope) = flow.pending.pop_front() else { return };
                let bytes = envelope.message.encoded_len();
                match self.hand_over(&mut flow, envelope, Instant::now()) {
                    None => {
                        flow.share.less(bytes);
                        continue;
                    }
                    Some((envelope, room)) => {
                        let port = envelope.port.clone();
                        flow.pending.push_front(envelope);
                        InLine::new(&self.target.mailbox, port, room)
                    }
                }
            };
            line.wait().await;
        }
    }

    /// What still waits goes to the dead letters: the sender is gone for good.
    pub(crate) fn abandon(&self, reason: Reason) {
        let mut flow = self.flow.lock();
        while let Some(envelope) = flow.pending.pop_front() {
            flow.share.less(envelope.message.encoded_len());
            flow.counts.refused_gone += 1;
            self.refuse(&envelope, reason.clone());
        }
    }

    /// What waits on the wire, in order.
    pub(crate) fn contents(&self) -> Vec<Envelope> {
        self.flow.lock().pending.iter().cloned().collect()
    }

    /// What waits on the wire has been saved, and leaves.
    pub(crate) fn saved(&self) {
        let mut flow = self.flow.lock();
        flow.counts.saved += flow.pending.len() as u64;
        flow.pending.clear();
        flow.share.nothing();
    }

    /// Whether what waits on the wire could go on now.
    pub(crate) fn can_move(&self) -> bool {
        let flow = self.flow.lock();
        flow.pending.front().is_some_and(|envelope| {
            self.target.mailbox.would_take(&envelope.port, envelope.message.encoded_len())
        })
    }

    /// Gives the message to the mailbox, or hands it back to wait.
    fn hand_over(
        &self,
        flow: &mut WireFlow,
        envelope: Envelope,
        now: Instant,
    ) -> Option<(Envelope, Arc<Notify>)> {
        if envelope.hops > self.target.max_hops.load(Ordering::Relaxed) {
            flow.counts.refused_hops += 1;
            self.refuse(&envelope, Reason::MaxHops);
            return None;
        }
        let correlation = envelope.correlation;
        match self.target.mailbox.push(envelope, flow.overflow, self.entry, now) {
            Ok(pushed) => {
                flow.counts.accepted += 1;
                if let Some(dropped) = pushed.dropped {
                    self.sinks.dead.dropped(&self.to.actor, &dropped);
                    self.sinks.waits.died(dropped.correlation, &Reason::Overflow);
                }
            }
            Err(PushError::Full(envelope, room)) => return Some((envelope, room)),
            Err(PushError::Dropped(envelope)) => {
                flow.counts.refused_overflow += 1;
                self.sinks.dead.dropped(&self.to.actor, &envelope);
                self.sinks.waits.died(correlation, &Reason::Overflow);
            }
            Err(PushError::Closed(envelope)) => {
                flow.counts.refused_gone += 1;
                self.refuse(&envelope, Reason::NoTarget);
            }
        }
        None
    }

    fn refuse(&self, envelope: &Envelope, reason: Reason) {
        self.sinks.waits.died(envelope.correlation, &reason);
        self.sinks.dead.put(&self.to.actor, envelope, reason, None, 0);
    }
}

impl WireFlow {
    /// The message has to wait, behind all that waits.
    fn wait(&mut self, envelope: Envelope) {
        self.share.more(envelope.message.encoded_len());
        self.pending.push_back(envelope);
    }
}

/// The wires that leave one actor, as one value: a turn goes by the one that was
/// in force when it began.
#[derive(Default)]
pub struct Routes {
    /// Sorted by port: there are few, and a search compares less than a hash reads.
    ports: Vec<(PortName, Vec<Arc<Wire>>)>,
}

impl Routes {
    pub(crate) fn new(wires: impl IntoIterator<Item = Arc<Wire>>) -> Self {
        let mut ports: Vec<(PortName, Vec<Arc<Wire>>)> = Vec::new();
        for wire in wires {
            match ports.binary_search_by(|(port, _)| port.cmp(&wire.from.port)) {
                Ok(at) => ports[at].1.push(wire),
                Err(at) => ports.insert(at, (wire.from.port.clone(), vec![wire])),
            }
        }
        Self { ports }
    }

    /// The wires of one outport, in the order of the configuration.
    pub(crate) fn of(&self, port: &PortName) -> &[Arc<Wire>] {
        match self.ports.binary_search_by(|(name, _)| name.cmp(port)) {
            Ok(at) => &self.ports[at].1,
            Err(_) => &[],
        }
    }

    /// All wires.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Wire>> {
        self.ports.iter().flat_map(|(_, wires)| wires)
    }
}
