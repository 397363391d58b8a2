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
use crate::host::Host;

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
    /// Bytes of linear memory that it may have.
    memory: usize,
}

impl Guest {
    pub(super) fn new(host: Host, memory: u64, place: Arc<Place>) -> Self {
        let (blocks, wasi) = (Blocks::new(memory), Wasi::new());
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        Self { host, blocks, place, wasi, memory }
    }

    /// When the call that goes on must have ended, as things stand. While the guest
    /// waits at the gate, its clock stands still.
    pub(super) fn deadline(&self) -> Instant {
        self.host.deadline + self.place.waited()
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
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= self.memory)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
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
    fn a_memory_and_a_table_grow_to_their_bounds_and_no_further() {
        let mut guest = guest(&Gate::of_process());
        let mut grows = |to| guest.memory_growing(0, to, None).expect("it only decides");
        assert_eq!(
            [0, 1 << 20, (1 << 20) + 1, usize::MAX].map(&mut grows),
            [true, true, false, false]
        );
        let mut grows = |to| guest.table_growing(0, to, None).expect("it only decides");
        let most = TABLE_ELEMENTS;
        assert_eq!([0, most, most + 1, usize::MAX].map(&mut grows), [true, true, false, false]);
        assert_eq!((guest.instances(), guest.memories(), guest.tables()), (1, 1, TABLES));
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
