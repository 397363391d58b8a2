//! The books of all mailboxes and wires, one by one and together.
//!
//! Each mailbox and each wire counts for itself and balances at every moment. Here
//! they are only read and added up, with what those that are gone have left.

use std::sync::Arc;

use serde::Serialize;

use crate::{Actor, Counts, Entry, Meters, Wire, WireCounts};

/// The books of the whole system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Books {
    /// Deliveries to mailboxes.
    pub deliveries: Counts,
    /// What wires took from turns and sources.
    pub wires: WireCounts,
}

impl Books {
    /// Counts what has ever happened: it grows with every step of every message.
    pub(super) fn ever(&self) -> [u64; 4] {
        let Self { deliveries, wires } = self;
        let left = deliveries.completed + deliveries.dead_lettered + deliveries.dropped;
        [deliveries.accepted_total(), left, wires.emitted, wires.accepted + wires.refused_total()]
    }

    /// Whether nothing is lost or doubled, and every delivery by wire is known at both ends.
    #[must_use]
    pub fn balanced(&self) -> bool {
        let by_wire = self.deliveries.accepted[Entry::Wire as usize]
            + self.deliveries.accepted[Entry::Connector as usize];
        self.deliveries.balanced() && self.wires.balanced() && self.wires.accepted == by_wire
    }
}

/// The books one by one. None of them is missing or twice there, whatever
/// starts and stops meanwhile.
pub struct Ledger {
    /// The actors that are there, by name, with the books of their mailboxes.
    pub actors: Vec<(Arc<Actor>, Counts)>,
    /// The wires that are there, by their ends, with their books.
    pub wires: Vec<(Arc<Wire>, WireCounts)>,
    /// What actors and wires that are gone have left.
    pub gone: Books,
    /// What actors that are gone have counted. With it, no sum over all actors falls.
    pub gone_meters: Meters,
}

impl Ledger {
    /// The books of the whole system.
    #[must_use]
    pub fn total(&self) -> Books {
        let mut books = self.gone;
        self.actors.iter().for_each(|(_, counts)| books.deliveries.add(counts));
        self.wires.iter().for_each(|(_, counts)| books.wires.add(counts));
        books
    }
}
