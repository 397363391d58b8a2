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
        } else if self.place.is_held() {
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
