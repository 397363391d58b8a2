//! An address and its connections, for as long as an actor listens there.
//!
//! A generation of the actor only says what is behind the door. The listening socket and the
//! open connections belong to the [`Place`], which all generations with the same address
//! share: the new one is made ready while the old one still runs, so there is always one that
//! holds it. The last one that goes closes it.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use axum::body::Body;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use reflowd_runtime::{ActorName, Emitter, SourceError, panic::Boundary};
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{Door, request};
use crate::{
    connections::{Connections, Guest, InHand},
    receipt::Receipts,
    request_head::MAX_HEAD,
};

/// How long a sender may take for a request's head, and be silent between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause where no connection can be taken because the process has too many files open.
const OUT_OF_FILES: Duration = Duration::from_millis(100);

/// How long answers in hand may take once the daemon has let go of everything else.
const GRACE: Duration = Duration::from_secs(1);

/// The addresses that the actors of a daemon listen on.
pub(crate) struct Listeners {
    places: Mutex<HashMap<(ActorName, SocketAddr), Weak<Place>>>,
    tasks: TaskTracker,
    /// The daemon is ending: nobody is answered any more.
    stopping: CancellationToken,
    receipts: Receipts,
}

impl Listeners {
    /// Listeners whose connections are among `tasks` and end when the daemon is `stopping`.
    pub(crate) fn new(tasks: TaskTracker, stopping: CancellationToken) -> Self {
        Self { places: Mutex::default(), tasks, stopping, receipts: Receipts::default() }
    }

    /// Bodies that are coming in.
    pub(crate) fn receipts(&self) -> &Receipts {
        &self.receipts
    }

    /// The place of that actor at that address: the one that it has, or one that is not
    /// bound yet.
    pub(super) fn place(&self, actor: &ActorName, address: SocketAddr) -> Arc<Place> {
        let mut places = self.places.lock();
        places.retain(|_, place| place.strong_count() > 0);
        let key = (actor.clone(), address);
        if let Some(place) = places.get(&key).and_then(Weak::upgrade) {
            return place;
        }
        let place = Arc::new(Place {
            address,
            listener: Mutex::new(None),
            behind: Arc::default(),
            connections: Arc::default(),
            arrived: Mutex::new(None),
            receipts: self.receipts.clone(),
            closing: CancellationToken::new(),
            stopping: self.stopping.clone(),
            tasks: self.tasks.clone(),
        });
        places.insert(key, Arc::downgrade(&place));
        place
    }
}

/// An address that an actor listens on.
pub(super) struct Place {
    address: SocketAddr,
    listener: Mutex<Option<Arc<TcpListener>>>,
    behind: Arc<ArcSwapOption<Behind>>,
    connections: Arc<Connections>,
    /// A connection that was taken and has no place yet. It outlives an edit of the actor.
    arrived: Mutex<Option<TcpStream>>,
    receipts: Receipts,
    closing: CancellationToken,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// What is behind the door at the moment.
pub(super) struct Behind {
    pub(super) door: Arc<Door>,
    pub(super) out: Emitter,
    pub(super) receipts: Receipts,
    pub(super) stopping: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Requests in hand are answered; their connections take no further ones.
        self.closing.cancel();
    }
}

impl Place {
    /// Serves requests by `door` from now on; those in hand are done by the one before.
    /// Returns only when it cannot.
    pub(super) async fn serve(&self, door: Arc<Door>, out: Emitter) -> SourceError {
        let listener = match self.listener(&out).await {
            Ok(listener) => listener,
            Err(error) => return SourceError { why: self.explain(&error) },
        };
        let stopping = self.stopping.clone();
        let receipts = self.receipts.clone();
        self.behind.store(Some(Arc::new(Behind { door, out, receipts, stopping })));
        loop {
            if self.arrived.lock().is_none() {
                match listener.accept().await {
                    Ok((stream, _)) => *self.arrived.lock() = Some(stream),
                    Err(error) if is_of_one(&error) => continue,
                    Err(error) => {
                        warn!(address = %self.address, %error, "no connection can be taken");
                        time::sleep(OUT_OF_FILES).await;
                        continue;
                    }
                }
            }
            let guest = Arc::new(self.connections.enter().await);
            let Some(stream) = self.arrived.lock().take() else { continue };
            let (behind, closing) = (Arc::clone(&self.behind), self.closing.clone());
            let stopping = self.stopping.clone();
            let served = serve(stream, guest, behind, closing, stopping);
            self.tasks.spawn(async { _ = Boundary::IngressConnection.hold(served).await });
        }
    }

    /// The socket, bound where it is not.
    async fn listener(&self, out: &Emitter) -> io::Result<Arc<TcpListener>> {
        if let Some(listener) = &*self.listener.lock() {
            return Ok(Arc::clone(listener));
        }
        let listener = Arc::new(TcpListener::bind(self.address).await?);
        let address = listener.local_addr()?;
        info!(actor = %out.actor(), %address, "listening");
        *self.listener.lock() = Some(Arc::clone(&listener));
        Ok(listener)
    }

    fn explain(&self, error: &io::Error) -> String {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "stop what listens there, or set another `listen`",
            io::ErrorKind::PermissionDenied => {
                "set a port above 1023, or let reflowd have CAP_NET_BIND_SERVICE"
            }
            io::ErrorKind::AddrNotAvailable => "set `listen` to an address of this machine",
            _ => "set another `listen`",
        };
        format!("cannot listen on {}: {error}; {advice}", self.address)
    }
}

/// Whether it was only one connection that failed, before it was taken.
fn is_of_one(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Answers the requests of one connection.
async fn serve(
    stream: TcpStream,
    guest: Arc<Guest>,
    behind: Arc<ArcSwapOption<Behind>>,
    closing: CancellationToken,
    stopping: CancellationToken,
) {
    // Answers are small and whole: there is nothing to wait for. Where it cannot be set, they
    // are slower.
    _ = stream.set_nodelay(true);
    let of = Arc::clone(&guest);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let in_hand = InHand::begin(&of);
        let request = request.map(|body| in_hand.request(Body::new(body)));
        let behind = behind.load_full();
        async move {
            let answering = Boundary::IngressRequest.hold(request::answer(behind, request));
            let answer = answering.await.unwrap_or_else(|_| request::broke());
            Ok::<_, Infallible>(answer.map(|body| in_hand.answer(body)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // A connection that broke is its sender's to notice.
        _ = &mut connection => return,
        () = guest.close.cancelled() => return,
        () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
        () = stopping.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = connection => {}
        () = async { stopping.cancelled().await; time::sleep(GRACE).await } => {}
    }
}
