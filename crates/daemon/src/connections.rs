//! The open connections of one listener, and the choice of one to close when a new one arrives.
//!
//! Anybody who can connect can also hold connections open, and their number is bounded. So that
//! idle callers shut nobody out, a new one replaces the connection that has been without a request
//! for longest, or else one that has stalled.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Connections that are served at once.
const MAX: usize = 1024;

/// How long a connection with a request in hand may stall while others wait. An idle stream sends a
/// sign of life more often.
const STALLED: Duration = Duration::from_secs(20);

/// How long a complete request may wait for its answer while others wait for a place. It is the
/// flow that is slow then, and not the caller.
const WITH_US: Duration = Duration::from_secs(120);

/// The connections of one listener.
#[derive(Default)]
pub(crate) struct Connections {
    open: Mutex<Open>,
    /// Told when one has gone or has nothing in hand any more.
    changed: Notify,
}

#[derive(Default)]
struct Open {
    next: u64,
    all: BTreeMap<u64, One>,
}

struct One {
    /// Requests in hand, those included whose answers are still going out.
    busy: usize,
    /// Requests that have arrived completely and are not answered yet.
    with_us: usize,
    /// When something last moved.
    moved: Instant,
    close: CancellationToken,
}

impl Connections {
    /// A place for a connection that has just been taken, once there is one.
    pub(crate) async fn enter(self: &Arc<Self>) -> Guest {
        loop {
            // Asked for before the look, so that no change falls between the two.
            let changed = self.changed.notified();
            {
                let mut open = self.open.lock();
                if open.all.len() < MAX {
                    let (id, close) = (open.next, CancellationToken::new());
                    open.next += 1;
                    let one =
                        One { busy: 0, with_us: 0, moved: Instant::now(), close: close.clone() };
                    open.all.insert(id, one);
                    return Guest { id, close, of: Arc::clone(self) };
                }
                if let Some(id) = open.least_wanted(Instant::now()) {
                    open.all[&id].close.cancel();
                }
            }
            // A connection that stalls does so without anybody being told.
            _ = tokio::time::timeout(STALLED / 10, changed).await;
        }
    }
}

impl Open {
    /// The connection that has been without a request for longest; else the one that has stalled
    /// for longest, if that is long.
    fn least_wanted(&self, now: Instant) -> Option<u64> {
        let standing = self.all.iter().filter(|(_, one)| !one.close.is_cancelled());
        let (id, one) =
            standing.min_by_key(|(_, one)| (one.busy > 0, one.moved + one.patience()))?;
        (now >= one.moved + one.patience()).then_some(*id)
    }
}

impl One {
    /// How long it may stall.
    fn patience(&self) -> Duration {
        match self {
            Self { busy: 0, .. } => Duration::ZERO,
            Self { with_us: 0, .. } => STALLED,
            Self { .. } => WITH_US,
        }
    }
}

/// One connection's place. Leaving it gives it to the next.
pub(crate) struct Guest {
    id: u64,
    /// Told when the place is wanted for another.
    pub(crate) close: CancellationToken,
    of: Arc<Connections>,
}

impl Guest {
    fn note(&self, note: impl FnOnce(&mut One)) {
        if let Some(one) = self.of.open.lock().all.get_mut(&self.id) {
            one.moved = Instant::now();
            note(one);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.of.open.lock().all.remove(&self.id);
        self.of.changed.notify_one();
    }
}

/// A request in hand, from its head to the end of its answer.
pub(crate) struct InHand {
    guest: Arc<Guest>,
    stage: Mutex<Stage>,
}

/// The progress of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    ComingIn,
    WithUs,
    Answered,
}

impl InHand {
    pub(crate) fn begin(guest: &Arc<Guest>) -> Arc<Self> {
        guest.note(|one| one.busy += 1);
        Arc::new(Self { guest: Arc::clone(guest), stage: Mutex::new(Stage::ComingIn) })
    }

    /// The request's body, of which each piece counts as a move. When it is dropped, all of
    /// the request is with us.
    pub(crate) fn request(self: &Arc<Self>, body: Body) -> Body {
        Body::new(Watched { body, in_hand: Arc::clone(self), then: Stage::WithUs })
    }

    /// The answer's body: each piece counts, and the request is in hand until it is through.
    pub(crate) fn answer(self: &Arc<Self>, body: Body) -> Body {
        self.come_to(Stage::Answered);
        Body::new(Watched { body, in_hand: Arc::clone(self), then: Stage::Answered })
    }

    fn come_to(&self, next: Stage) {
        let mut stage = self.stage.lock();
        match (*stage, next) {
            (Stage::ComingIn, Stage::WithUs) => self.guest.note(|one| one.with_us += 1),
            (Stage::WithUs, Stage::Answered) => self.guest.note(|one| one.with_us -= 1),
            (Stage::ComingIn, Stage::Answered) => {}
            _ => return,
        }
        *stage = next;
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        // It may have ended without an answer.
        self.come_to(Stage::Answered);
        self.guest.note(|one| one.busy -= 1);
        self.guest.of.changed.notify_one();
    }
}

struct Watched {
    body: Body,
    in_hand: Arc<InHand>,
    /// How far the request has come when the body is dropped.
    then: Stage,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.in_hand.come_to(self.then);
    }
}

/// Whether a piece of a request is blank: sending one now and then does not keep a place.
fn is_blank(frame: &Frame<Bytes>) -> bool {
    frame.data_ref().is_some_and(|piece| piece.trim_ascii().is_empty())
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && (self.then == Stage::Answered || !is_blank(frame))
        {
            self.in_hand.guest.note(|_| ());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use http_body_util::BodyExt;

    use super::*;

    async fn full() -> (Arc<Connections>, Vec<Arc<Guest>>) {
        let connections = Arc::<Connections>::default();
        let mut guests = Vec::new();
        for _ in 0..MAX {
            guests.push(Arc::new(connections.enter().await));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        (connections, guests)
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_nothing_in_hand_for_longest_makes_room() {
        let (connections, mut guests) = full().await;
        let _busy = InHand::begin(&guests[0]);
        let entering = connections.enter();
        tokio::pin!(entering);
        assert!(poll!(&mut entering).is_pending());
        let closed: Vec<_> = guests.iter().map(|guest| guest.close.is_cancelled()).collect();
        assert!(!closed[0] && closed[1] && !closed[2]);
        guests.remove(1);
        entering.await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_on_which_nothing_moves_makes_room_in_the_end() {
        let (connections, guests) = full().await;
        let busy: Vec<_> = guests.iter().map(InHand::begin).collect();
        let entering = connections.enter();
        tokio::pin!(entering);
        assert!(poll!(&mut entering).is_pending());
        assert!(guests.iter().all(|guest| !guest.close.is_cancelled()));
        tokio::time::advance(STALLED / 2).await;
        // All but one go on.
        guests[1..].iter().for_each(|guest| guest.note(|_| ()));
        tokio::time::advance(STALLED / 2).await;
        assert!(poll!(&mut entering).is_pending());
        tokio::time::advance(STALLED / 10).await;
        assert!(poll!(&mut entering).is_pending());
        let closed = guests.iter().filter(|guest| guest.close.is_cancelled()).count();
        assert_eq!((closed, guests[0].close.is_cancelled()), (1, true));
        drop(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_flow_is_not_sent_away_like_one_who_stalls() {
        let (connections, guests) = full().await;
        let busy: Vec<_> = guests.iter().map(InHand::begin).collect();
        // All but the last have sent all that they have to say.
        busy[..MAX - 1].iter().for_each(|in_hand| drop(in_hand.request(Body::empty())));
        let entering = connections.enter();
        tokio::pin!(entering);
        tokio::time::advance(STALLED).await;
        assert!(poll!(&mut entering).is_pending());
        let closed = || guests.iter().filter(|guest| guest.close.is_cancelled()).count();
        assert_eq!((closed(), guests[MAX - 1].close.is_cancelled()), (1, true));
        tokio::time::advance(WITH_US).await;
        assert!(poll!(&mut entering).is_pending());
        assert_eq!(closed(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blank_line_is_no_move() {
        let connections = Arc::<Connections>::default();
        let guest = Arc::new(connections.enter().await);
        let in_hand = InHand::begin(&guest);
        let began = Instant::now();
        let moved = || connections.open.lock().all[&guest.id].moved;
        let mut bodies = Vec::new();
        for (piece, moves) in [(" \n", false), ("1\n", true)] {
            tokio::time::advance(Duration::from_secs(1)).await;
            let mut body = in_hand.request(Body::from(piece));
            assert!(body.frame().await.unwrap().is_ok());
            assert_eq!(moved() > began, moves, "{piece:?}");
            bodies.push(body);
        }
    }
}
