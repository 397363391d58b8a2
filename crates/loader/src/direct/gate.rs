//! The gate: as many guests compute at a time as there are cores.
//!
//! A guest that computes for longer than a tick gives its place to the one that
//! has waited longest, and joins the queue's end. So a thousand actors that spin
//! share the cores evenly, and a quick turn waits for one tick of each core at
//! most before it is let in. The threads that take turns are one more than places,
//! so that there is always one for what is not a guest.
//!
//! The time for which a guest waits here is not its own: its deadline moves by it.
//! Otherwise its neighbours could make it late.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::available_parallelism,
    time::{Duration, Instant},
};

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
    held: AtomicBool,
    /// Nanoseconds waited for it in this call.
    waited: AtomicU64,
}

/// A place that is held until this is dropped.
pub(crate) struct Held<'a>(&'a Place);

impl Place {
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        Self { gate, held: AtomicBool::new(false), waited: AtomicU64::new(0) }
    }

    /// Waits for a place, and holds it. What was waited counts from here.
    pub(crate) async fn enter(&self) -> Held<'_> {
        self.waited.store(0, Ordering::Relaxed);
        self.take().await;
        Held(self)
    }

    /// How long this call has waited here so far.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    /// Whether the guest computes at the gate's leave, and not by itself.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Lets others compute: whoever waits at the gate, else other tasks of this thread.
    pub(crate) async fn give_way(&self) {
        if self.gate.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        } else {
            self.outside(std::future::ready(())).await;
        }
    }

    /// Waits for something that is not computing, and holds no place meanwhile.
    pub(crate) async fn outside<T>(&self, waits: impl Future<Output = T>) -> T {
        let entered = self.leave();
        let result = waits.await;
        if entered {
            self.take().await;
        }
        result
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

impl Drop for Held<'_> {
    fn drop(&mut self) {
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
    async fn who_waits_longest_is_let_in_first() {
        let gate = Arc::new(Gate::new(1));
        let places = places(3, &gate);
        let mut computing = Some(places[0].enter().await);
        let (mut second, mut third) = (pin!(places[1].enter()), pin!(places[2].enter()));
        assert!(poll_immediate(&mut second).await.is_none());
        assert!(poll_immediate(&mut third).await.is_none());
        computing.take();
        assert!(poll_immediate(&mut third).await.is_none());
        let second = second.await;
        assert!(places[1].is_held() && !places[0].is_held());
        drop(second);
        third.await;
    }

    #[tokio::test]
    async fn a_place_is_given_up_only_while_someone_waits() {
        let gate = Arc::new(Gate::new(1));
        let places = places(2, &gate);
        let held = places[0].enter().await;
        places[0].give_way().await;
        assert!(places[0].is_held());
        let mut other = pin!(places[1].enter());
        assert!(poll_immediate(&mut other).await.is_none());
        let mut way = pin!(places[0].give_way());
        assert!(poll_immediate(&mut way).await.is_none());
        let other = other.await;
        assert!(!places[0].is_held());
        drop(other);
        way.await;
        assert!(places[0].is_held());
        assert!(places[1].waited() > Duration::ZERO);
        drop(held);
        let again = places[1].enter().await;
        assert_eq!(places[1].waited(), Duration::ZERO, "each call counts for itself");
        drop(again);
        assert_eq!(gate.places.available_permits(), 1);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_nothing_behind() {
        let gate = Arc::new(Gate::new(1));
        let places = places(2, &gate);
        let held = places[0].enter().await;
        assert!(places[1].enter().now_or_never().is_none());
        drop(held);
        assert_eq!((gate.waiting.load(Ordering::Relaxed), gate.places.available_permits()), (0, 1));
        let held = places[0].enter().await;
        assert!(places[0].outside(std::future::pending::<()>()).now_or_never().is_none());
        drop(held);
        assert_eq!(gate.places.available_permits(), 1, "a place is given back once");
    }
}
