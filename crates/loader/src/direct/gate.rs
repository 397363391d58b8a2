//! The gate: as many guests compute for long at a time as there are cores.
//!
//! A call begins without asking anybody, and most have ended before the clock
//! ticks. A guest that still computes then needs a place, and at every further tick
//! gives it to the one that has waited longest, and joins the queue's end. So a
//! thousand actors that spin share the cores evenly among themselves, and quick
//! turns do not stand in line with them. The threads that take turns are one more
//! than places, so that there is always one for what is quick.
//!
//! The time for which a guest waits here is not its own: its deadline moves by it.
//! Otherwise its neighbours could make it late.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, available_parallelism},
    time::{Duration, Instant},
};

use reflowd_runtime::panic::blocking;
use tokio::sync::Semaphore;

/// Lets so many guests in at a time, in the order in which they came.
pub(crate) struct Gate {
    places: Semaphore,
    waiting: AtomicUsize,
}

impl Gate {
    /// A gate with so many places.
    pub(super) fn new(places: usize) -> Self {
        Self { places: Semaphore::new(places), waiting: AtomicUsize::new(0) }
    }

    /// The gate that all guests of this process go through.
    pub(crate) fn of_process() -> Arc<Self> {
        static GATE: OnceLock<Arc<Gate>> = OnceLock::new();
        let gate = GATE
            .get_or_init(|| Arc::new(Self::new(available_parallelism().map_or(1, usize::from))));
        gate.clone()
    }
}

/// One guest's place at the gate, held or not.
pub(crate) struct Place {
    gate: Arc<Gate>,
    /// Whether a call goes on that must let others compute.
    entered: AtomicBool,
    held: AtomicBool,
    /// Nanoseconds waited for it in this call.
    waited: AtomicU64,
}

/// A call that goes on until this is dropped.
pub(crate) struct Entered<'a>(&'a Place);

impl Place {
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        let (entered, held) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { gate, entered, held, waited: AtomicU64::new(0) }
    }

    /// Begins a call. What is waited counts from here.
    pub(crate) fn enter(&self) -> Entered<'_> {
        self.waited.store(0, Ordering::Relaxed);
        self.entered.store(true, Ordering::Relaxed);
        Entered(self)
    }

    /// How long this call has waited here so far.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    /// Whether the guest shares its thread with others, and must let them compute.
    pub(crate) fn is_entered(&self) -> bool {
        self.entered.load(Ordering::Relaxed)
    }

    /// Whether the guest has one of the gate's places.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Lets others compute: whoever waits at the gate, else other tasks of this
    /// thread. Who has computed without a place so far takes one.
    pub(crate) async fn give_way(&self) {
        // Threads are more than cores: one that has a quick turn may wait for this core.
        thread::yield_now();
        if !self.is_held() {
            self.take().await;
        } else if self.gate.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        } else {
            self.outside(std::future::ready(())).await;
        }
    }

    /// Waits for something that is not computing, and holds no place meanwhile.
    pub(crate) async fn outside<T>(&self, waits: impl Future<Output = T>) -> T {
        let held = self.leave();
        let result = waits.await;
        if held {
            self.take().await;
        }
        result
    }

    /// Does work of the host that takes long on a thread where it holds up nobody, and waits
    /// for it. It is computing like any other: it holds a place meanwhile.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if self.is_entered() && !self.is_held() {
            self.take().await;
        }
        blocking(work).await
    }

    async fn take(&self) {
        if let Ok(permit) = self.gate.places.try_acquire() {
            permit.forget();
        } else {
            let since = Instant::now();
            let waiting = Waiting::new(&self.gate.waiting);
            let permit = self.gate.places.acquire().await;
            permit.expect("the semaphore is never closed").forget();
            drop(waiting);
            let waited = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.waited.fetch_add(waited, Ordering::Relaxed);
        }
        self.held.store(true, Ordering::Relaxed);
    }

    fn leave(&self) -> bool {
        let held = self.held.swap(false, Ordering::Relaxed);
        if held {
            self.gate.places.add_permits(1);
        }
        held
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.entered.store(false, Ordering::Relaxed);
        self.0.leave();
    }
}

/// Counts one who waits, for as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{FutureExt, future::poll_immediate};

    use super::*;

    fn places(count: usize, of: &Arc<Gate>) -> Vec<Place> {
        (0..count).map(|_| Place::new(of.clone())).collect()
    }

    #[tokio::test]
    async fn a_quick_call_stands_in_no_line() {
        let gate = Arc::new(Gate::new(1));
        let places = places(3, &gate);
        let _slow = [places[0].enter(), places[1].enter()];
        places[0].give_way().await;
        assert!(places[1].give_way().now_or_never().is_none());
        let quick = places[2].enter();
        assert!(places[2].is_entered() && !places[2].is_held());
        drop(quick);
        assert!(!places[2].is_entered() && places[0].is_held());
        assert_eq!((places[2].waited(), gate.places.available_permits()), (Duration::ZERO, 0));
    }

    #[tokio::test]
    async fn who_waits_longest_is_let_in_first() {
        let gate = Arc::new(Gate::new(1));
        let places = places(3, &gate);
        let first = places[0].enter();
        let (second, _third) = (places[1].enter(), places[2].enter());
        places[0].give_way().await;
        let (mut way, mut last) = (pin!(places[1].give_way()), pin!(places[2].give_way()));
        assert!(poll_immediate(&mut way).await.is_none());
        assert!(poll_immediate(&mut last).await.is_none());
        drop(first);
        assert!(poll_immediate(&mut last).await.is_none());
        assert!(poll_immediate(&mut way).await.is_some());
        assert!(places[1].is_held() && !places[0].is_held());
        drop(second);
        assert!(poll_immediate(&mut last).await.is_some());
    }

    #[tokio::test]
    async fn a_place_is_given_up_only_while_someone_waits() {
        let gate = Arc::new(Gate::new(1));
        let places = places(2, &gate);
        let (first, second) = (places[0].enter(), places[1].enter());
        places[0].give_way().await;
        places[0].give_way().await;
        assert!(places[0].is_held());
        let mut other = pin!(places[1].give_way());
        assert!(poll_immediate(&mut other).await.is_none());
        let mut way = pin!(places[0].give_way());
        assert!(poll_immediate(&mut way).await.is_none());
        assert!(poll_immediate(&mut other).await.is_some());
        assert!(places[1].is_held() && !places[0].is_held());
        drop(second);
        assert!(poll_immediate(&mut way).await.is_some());
        assert!(places[0].is_held());
        assert!(places[1].waited() > Duration::ZERO);
        drop(first);
        let again = places[1].enter();
        assert_eq!(places[1].waited(), Duration::ZERO, "each call counts for itself");
        drop(again);
        assert_eq!(gate.places.available_permits(), 1);
    }

    #[tokio::test]
    async fn long_work_of_the_host_holds_a_place_and_not_the_thread() {
        let gate = Arc::new(Gate::new(1));
        let places = places(2, &gate);
        let _both = [places[0].enter(), places[1].enter()];
        let (begin, begun) = std::sync::mpsc::sync_channel::<()>(0);
        let work = places[0].aside(move || begun.recv().is_ok());
        let mut work = pin!(work);
        assert!(poll_immediate(&mut work).await.is_none());
        // This thread goes on, and nobody else has a place.
        assert!(places[0].is_held() && places[1].aside(|| ()).now_or_never().is_none());
        begin.send(()).unwrap();
        assert!(work.await);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_nothing_behind() {
        let gate = Arc::new(Gate::new(1));
        let places = places(2, &gate);
        let (first, _second) = (places[0].enter(), places[1].enter());
        places[0].give_way().await;
        assert!(places[1].give_way().now_or_never().is_none());
        drop(first);
        assert_eq!((gate.waiting.load(Ordering::Relaxed), gate.places.available_permits()), (0, 1));
        let first = places[0].enter();
        places[0].give_way().await;
        assert!(places[0].outside(std::future::pending::<()>()).now_or_never().is_none());
        drop(first);
        assert_eq!(gate.places.available_permits(), 1, "a place is given back once");
    }
}
