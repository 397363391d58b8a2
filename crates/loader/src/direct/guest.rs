//! What a store holds for its guest, and what is decided about it while it runs.

use std::{sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use tracing::Level;
use wasmtime::{ResourceLimiter, StoreContextMut, UpdateDeadline};

use super::{
    blocks::Blocks,
    gate::Place,
    wasi::{Stream, Wasi, WasiHost},
};
use crate::{account::Account, binary::TABLE_ELEMENT, host::Host, turn::Side};

/// Elements of one table. Compilers make one entry for each function.
const TABLE_ELEMENTS: usize = 1 << 20;

/// Tables of one module. Toolchains make one or two.
const TABLES: usize = 16;

/// The data of one store.
pub(crate) struct Guest {
    pub(super) host: Host,
    pub(super) blocks: Blocks,
    pub(super) place: Arc<Place>,
    wasi: Wasi,
    pub(super) room: Room,
}

/// Bytes of the linear memory and the tables of one instance together.
pub(super) struct Room {
    limit: usize,
    memory: usize,
    tables: usize,
    /// The size of the last growth, in case that it fails after all.
    added: usize,
    /// Set once a growth was refused in the present call.
    refused: bool,
}

impl Room {
    fn new(limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { limit, memory: 0, tables: 0, added: 0, refused: false }
    }

    /// A call begins, in which nothing has been refused yet.
    pub(super) fn begin(&mut self) {
        self.refused = false;
    }

    /// The limit, if the call that goes on has been refused more.
    pub(super) fn refused(&self) -> Option<u64> {
        self.refused.then_some(self.limit as u64)
    }

    /// Bytes that are taken.
    pub(super) fn taken(&self) -> usize {
        self.memory + self.tables
    }

    /// Whether that many more bytes fit.
    fn fits(&mut self, more: usize) -> bool {
        let fits = self.taken().checked_add(more).is_some_and(|taken| taken <= self.limit);
        self.refused |= !fits;
        fits
    }
}

impl Guest {
    pub(super) fn new(host: Host, memory: u64, place: Arc<Place>) -> Self {
        let (blocks, wasi) = (Blocks::new(), Wasi::new());
        Self { host, blocks, place, wasi, room: Room::new(memory) }
    }

    /// When the call that goes on must have ended, as things stand. While the guest
    /// waits at the gate, its clock stands still.
    pub(super) fn deadline(&self) -> Instant {
        self.host.deadline + self.place.waited()
    }

    /// Gives away what a turn works on, for work that takes long. The turn goes on when it
    /// was brought [back](Self::take_back).
    pub(super) fn lend(&mut self) -> Option<Desk> {
        let side = self.host.side.take()?;
        let blocks = std::mem::replace(&mut self.blocks, Blocks::new());
        Some(Desk { side, blocks, account: self.host.account })
    }

    pub(super) fn take_back(&mut self, desk: Desk) {
        self.host.side = Some(desk.side);
        self.host.account = desk.account;
        self.blocks = desk.blocks;
    }

    /// What happens to a guest that computes when the clock ticks.
    fn at_tick(&self, now: Instant) -> Tick {
        if now >= self.deadline() {
            Tick::End
        } else if self.place.is_entered() {
            Tick::GiveWay
        } else {
            Tick::GoOn
        }
    }
}

/// What the host's work for a turn is done on.
pub(super) struct Desk {
    pub(super) side: Side,
    pub(super) blocks: Blocks,
    pub(super) account: Account,
}

#[derive(Debug, PartialEq, Eq)]
enum Tick {
    /// Its time is over.
    End,
    /// Others may compute now.
    GiveWay,
    /// It has a thread of its own.
    GoOn,
}

/// For [`wasmtime::Store::epoch_deadline_callback`].
pub(super) fn tick(store: StoreContextMut<'_, Guest>) -> wasmtime::Result<UpdateDeadline> {
    let guest = store.data();
    Ok(match guest.at_tick(Instant::now()) {
        Tick::End => UpdateDeadline::Interrupt,
        Tick::GoOn => UpdateDeadline::Continue(1),
        Tick::GiveWay => {
            let place = guest.place.clone();
            UpdateDeadline::YieldCustom(1, Box::pin(async move { place.give_way().await }))
        }
    })
}

impl WasiHost for Guest {
    fn wasi(&mut self) -> &mut Wasi {
        &mut self.wasi
    }

    fn line(&mut self, stream: Stream, text: &[u8]) {
        let level = match stream {
            Stream::Stdout => Level::INFO,
            Stream::Stderr => Level::WARN,
        };
        self.host.log(level, text);
    }

    fn deadline(&self) -> Instant {
        self.deadline()
    }

    fn waiting(&mut self, until: Instant) -> BoxFuture<'static, ()> {
        let place = self.place.clone();
        Box::pin(async move {
            if until <= Instant::now() {
                place.give_way().await;
            } else {
                place.outside(tokio::time::sleep_until(until.into())).await;
            }
        })
    }
}

impl ResourceLimiter for Guest {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let grows = maximum.is_none_or(|most| desired <= most) && self.room.fits(more);
        if grows {
            self.room.memory += more;
            self.room.added = more;
        }
        Ok(grows)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.room.memory -= std::mem::take(&mut self.room.added);
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current).saturating_mul(TABLE_ELEMENT);
        let most = maximum.unwrap_or(TABLE_ELEMENTS).min(TABLE_ELEMENTS);
        let grows = desired <= most && self.room.fits(more);
        if grows {
            self.room.tables += more;
            self.room.added = more;
        }
        Ok(grows)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.room.tables -= std::mem::take(&mut self.room.added);
        Ok(())
    }

    fn instances(&self) -> usize {
        1
    }

    fn memories(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        TABLES
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use futures_util::future::poll_immediate;

    use super::*;
    use crate::{direct::gate::Gate, host::Surroundings};

    fn guest(gate: &Arc<Gate>) -> Guest {
        let place = Place::new(gate.clone());
        Guest::new(Host::new(Arc::new(Surroundings::none())), 1 << 20, Arc::new(place))
    }

    #[test]
    fn memory_and_tables_grow_to_one_bound_together_and_no_further() {
        const LIMIT: usize = 1 << 20;
        let memory = |guest: &mut Guest, from, to, most| {
            guest.memory_growing(from, to, most).expect("it only decides")
        };
        let table = |guest: &mut Guest, from, to, most| {
            guest.table_growing(from, to, most).expect("it only decides")
        };
        let gate = Gate::of_process();
        let mut alone = guest(&gate);
        assert!(
            !memory(&mut alone, 0, LIMIT + 1, None) && !memory(&mut alone, 0, usize::MAX, None)
        );
        assert!(memory(&mut alone, 0, LIMIT, None) && alone.room.taken() == LIMIT);
        assert!(!table(&mut alone, 0, 1, None), "the memory has taken all");

        let mut both = guest(&gate);
        assert!(!memory(&mut both, 0, 100, Some(99)), "its own maximum holds first");
        assert!(!table(&mut both, 0, 2, Some(1)));
        assert_eq!(both.room.taken(), 0);
        assert!(memory(&mut both, 0, LIMIT / 2, None));
        let elements = LIMIT / 2 / TABLE_ELEMENT;
        assert!(!table(&mut both, 0, elements + 1, None));
        assert!(table(&mut both, 0, elements - 1, None) && table(&mut both, 7, 8, None));
        assert!(!table(&mut both, 0, 1, None) && !memory(&mut both, 0, 1, None));
        both.table_grow_failed(wasmtime::Error::msg("no room")).expect("it only takes note");
        assert!(table(&mut both, 0, 1, None), "what could not be had is not taken");

        let mut wide = guest(&gate);
        wide.room.limit = usize::MAX;
        let grown = [TABLE_ELEMENTS, TABLE_ELEMENTS + 1, usize::MAX];
        assert_eq!(grown.map(|to| table(&mut wide, 0, to, None)), [true, false, false]);
        assert_eq!((wide.instances(), wide.memories(), wide.tables()), (1, 1, TABLES));
    }

    #[test]
    fn a_tick_ends_who_is_late_and_asks_only_who_shares_a_thread_to_give_way() {
        let mut guest = guest(&Arc::new(Gate::new(1)));
        let now = Instant::now();
        let (soon, nanosecond) = (now + Duration::from_secs(9), Duration::from_nanos(1));
        guest.host.deadline = soon;
        assert_eq!(guest.at_tick(now), Tick::GoOn);
        let place = guest.place.clone();
        let entered = place.enter();
        let deadline = guest.deadline();
        assert_eq!(guest.at_tick(deadline - nanosecond), Tick::GiveWay);
        assert_eq!(guest.at_tick(deadline), Tick::End);
        drop(entered);
        assert_eq!(guest.at_tick(deadline), Tick::End);
    }

    #[tokio::test]
    async fn a_guest_that_sleeps_holds_no_place() {
        let mut guest = guest(&Arc::new(Gate::new(1)));
        let place = guest.place.clone();
        let _entered = place.enter();
        place.give_way().await;
        assert!(place.is_held());
        let mut sleeps = guest.waiting(Instant::now() + Duration::from_secs(60));
        assert!(poll_immediate(&mut sleeps).await.is_none());
        assert!(!place.is_held());
    }

    #[tokio::test]
    async fn the_time_that_a_guest_waits_for_others_is_not_its_own() {
        let gate = Arc::new(Gate::new(1));
        let (mut waits, other) = (guest(&gate), Place::new(gate));
        let computing = other.enter();
        other.give_way().await;
        let place = waits.place.clone();
        let _entered = place.enter();
        let mut way = pin!(place.give_way());
        assert!(poll_immediate(&mut way).await.is_none());
        drop(computing);
        assert!(poll_immediate(&mut way).await.is_some());
        assert!(place.waited() > Duration::ZERO);
        let due = Instant::now();
        waits.host.deadline = due;
        assert_eq!(waits.deadline(), due + place.waited());
        assert_eq!(waits.at_tick(due), Tick::GiveWay);
        assert_eq!(waits.at_tick(due + place.waited()), Tick::End);
    }
}
