//! In which order modules are loaded, and how many at a time.
//!
//! There are as many places as cores, so that loading is as fast as the machine allows. One
//! that takes long leaves its place to others and goes on beside them: a module that hangs or
//! compiles for minutes holds up who uses it and nobody else. Those that go on beside have
//! places of their own, as many again; one that is still there after [`HUNG`] is not counted
//! any more: what compiles has a bound of its own in the loader, and what hangs is asked
//! something, which ends at its deadline.
//!
//! What one look has found is a batch. Batches take turns, so that a module that comes late
//! does not stand behind a thousand others, and in a batch the small ones come first.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

/// How long a load keeps its place: several times what one of ordinary size takes.
const SHORT: Duration = Duration::from_millis(200);

/// After this long one that has left its place is not counted any more: a few modules that
/// hang would have all the places.
const HUNG: Duration = Duration::from_secs(1);

/// Places for those that load. Clones share them.
#[derive(Clone)]
pub(super) struct Lanes(Arc<Mutex<Inner>>);

struct Inner {
    /// Places that nobody has: for those that begin, and for those that take long.
    fast: usize,
    slow: usize,
    /// Those that wait, by batch; the batch in front is next.
    batches: VecDeque<Batch>,
    arrivals: u64,
    /// Those in the fast lane that have taken long and wait to leave it.
    leaving: VecDeque<oneshot::Sender<()>>,
}

struct Batch {
    number: u64,
    /// By size, then in the order in which they came.
    waiting: BTreeMap<(u64, u64), oneshot::Sender<()>>,
}

/// Which of those that wait is next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rank {
    /// The look that has found the module.
    pub(super) batch: u64,
    /// Bytes of the module.
    pub(super) size: u64,
}

impl Lanes {
    /// Lanes of so many places each.
    pub(super) fn new(places: usize) -> Self {
        let (batches, leaving) = (VecDeque::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(Inner {
            fast: places,
            slow: places,
            batches,
            arrivals: 0,
            leaving,
        })))
    }

    /// Does a load once it is its turn.
    pub(super) async fn take_turn<T>(&self, rank: Rank, load: impl Future<Output = T>) -> T {
        let place = self.place(rank).await;
        tokio::pin!(load);
        if let Ok(done) = timeout(SHORT, &mut load).await {
            return done;
        }
        let moving = place.make_way();
        tokio::pin!(moving);
        let slow = tokio::select! {
            biased;
            done = &mut load => return done,
            slow = &mut moving => slow,
        };
        tokio::select! {
            biased;
            done = &mut load => return done,
            () = sleep(HUNG) => drop(slow),
        }
        load.await
    }

    async fn place(&self, rank: Rank) -> Place {
        let turn = {
            let mut inner = self.0.lock();
            let (turn, is_next) = oneshot::channel();
            inner.arrivals += 1;
            let key = (rank.size, inner.arrivals);
            match inner.batches.iter_mut().find(|batch| batch.number == rank.batch) {
                Some(batch) => _ = batch.waiting.insert(key, turn),
                None => {
                    let batch = Batch { number: rank.batch, waiting: [(key, turn)].into() };
                    inner.batches.push_back(batch);
                }
            }
            inner.admit();
            is_next
        };
        // The sender lives in the line until it is used.
        _ = turn.await;
        Place { lanes: self.clone(), lane: Lane::Fast }
    }
}

impl Inner {
    /// Gives free places to those that wait.
    fn admit(&mut self) {
        while self.fast > 0
            && let Some(mut batch) = self.batches.pop_front()
        {
            let next = batch.waiting.pop_first();
            if !batch.waiting.is_empty() {
                self.batches.push_back(batch);
            }
            // One that was given up has left nobody to take the place.
            if next.is_some_and(|(_, turn)| turn.send(()).is_ok()) {
                self.fast -= 1;
            }
        }
        while self.slow > 0
            && let Some(moves) = self.leaving.pop_front()
        {
            if moves.send(()).is_ok() {
                self.slow -= 1;
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Fast,
    Slow,
}

/// A place, which is free again when this is dropped.
struct Place {
    lanes: Lanes,
    lane: Lane,
}

impl Place {
    /// Leaves the place in the fast lane for one in the slow one, once there is one.
    async fn make_way(self) -> Self {
        let moves = {
            let mut inner = self.lanes.0.lock();
            let (moves, may_move) = oneshot::channel();
            inner.leaving.push_back(moves);
            inner.admit();
            may_move
        };
        // As above.
        _ = moves.await;
        let lanes = self.lanes.clone();
        drop(self);
        Self { lanes, lane: Lane::Slow }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.lanes.0.lock();
        match self.lane {
            Lane::Fast => inner.fast += 1,
            Lane::Slow => inner.slow += 1,
        }
        inner.admit();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tokio_util::task::TaskTracker;

    use super::*;

    /// Loads with these ranks and durations; in which order and when they end, in milliseconds.
    async fn ends(places: usize, loads: &[(u64, u64, u64)]) -> Vec<(usize, u128)> {
        let (lanes, begin) = (Lanes::new(places), Instant::now());
        let ended = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for (n, (batch, size, millis)) in loads.iter().copied().enumerate() {
            let (lanes, ended) = (lanes.clone(), Arc::clone(&ended));
            let load = async move { sleep(Duration::from_millis(millis)).await };
            tasks.spawn(async move {
                lanes.take_turn(Rank { batch, size }, load).await;
                ended.lock().push((n, begin.elapsed().as_millis()));
            });
            tokio::task::yield_now().await;
        }
        tasks.join_all().await;
        Arc::into_inner(ended).unwrap().into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn the_small_ones_of_a_batch_come_first() {
        let loads = [(1, 50, 10), (1, 9, 10), (1, 1, 10), (1, 5, 10)];
        assert_eq!(ends(1, &loads).await, [(0, 10), (2, 20), (3, 30), (1, 40)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_late_does_not_stand_behind_a_burst() {
        let mut loads = vec![(1, 1, 10); 100];
        loads.push((2, 1, 10));
        let ends = ends(1, &loads).await;
        assert!(ends[..3].iter().any(|(n, _)| *n == 100), "{ends:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_long_leaves_its_place_to_others() {
        let loads = [(1, 1, 60_000), (1, 2, 10), (1, 3, 10)];
        assert_eq!(ends(1, &loads).await, [(1, 210), (2, 220), (0, 60_000)]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_take_long_are_few_until_they_hang() {
        let loads = [(1, 1, 60_000), (1, 2, 60_000), (1, 3, 10)];
        // The second one can leave when the first one hangs.
        assert_eq!(ends(1, &loads).await, [(2, 1_210), (0, 60_000), (1, 60_200)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_given_up_leaves_its_place() {
        let lanes = Lanes::new(1);
        let rank = Rank { batch: 1, size: 1 };
        let tasks = TaskTracker::new();
        let first = tasks.spawn({
            let lanes = lanes.clone();
            async move { lanes.take_turn(rank, std::future::pending::<()>()).await }
        });
        let waiting = tasks.spawn({
            let lanes = lanes.clone();
            async move { lanes.take_turn(rank, std::future::pending::<()>()).await }
        });
        tokio::task::yield_now().await;
        waiting.abort();
        first.abort();
        let last = timeout(Duration::from_secs(1), lanes.take_turn(rank, std::future::ready(7)));
        assert_eq!(last.await, Ok(7));
    }
}
