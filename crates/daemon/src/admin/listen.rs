//! Where the API is served: a Unix socket that only its owner can open, and a
//! loopback address.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse as _, Response},
    serve::Listener,
};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use listenfd::ListenFd;
use reflowd_runtime::panic::{Boundary, Pauses};
use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixListener, UnixSocket},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{Problem, access::Caller};
use crate::{
    connections::{Connections, InHand},
    request_head::{MAX_HEAD, settle},
};

/// The longest path of a socket in bytes, without the final zero: `sun_path` has 108.
const MAX_PATH: usize = 107;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// How long a caller may take to send a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long answers in hand may take when the daemon stops.
const GRACE: Duration = Duration::from_secs(2);

/// The API cannot be served there.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    /// A Unix socket's path has a limit of its own.
    #[error(
        "the socket's path `{path}` has {length} bytes and {MAX_PATH} are the most; set a shorter [admin] socket"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Somebody answers there.
    #[error("another daemon listens on `{path}`; stop it, or set another [admin] socket")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("`{path}` is there and is no socket; move it away, or set another [admin] socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// What the service manager has passed on cannot be used.
    #[error(
        "the service manager has passed on something that is no Unix socket; see `ListenStream=` of the socket unit"
    )]
    Passed(#[source] io::Error),
    /// The socket cannot be made.
    #[error("cannot listen on the socket `{path}`")]
    Socket {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Anybody could come.
    #[error(
        "the address {listen} can be reached from elsewhere; without [admin] tokens, listen on a loopback address, such as 127.0.0.1:9670"
    )]
    NotLoopback {
        /// The address.
        listen: SocketAddr,
    },
    /// The address cannot be had.
    #[error("cannot listen on {listen}; set another [admin] listen")]
    Address {
        /// The address.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// The daemon's socket. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    /// Goes when the socket goes.
    _file: SocketFile,
}

impl Socket {
    /// Whether the socket is bound to `path`.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.into());
        let bound = self.listener.local_addr().ok();
        bound
            .as_ref()
            .and_then(|address| address.as_pathname())
            .is_some_and(|bound| real(bound) == real(path))
    }
}

/// A socket's file, by name and identity: a later daemon's is not removed.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // If it stays, the next daemon finds that nobody answers and removes it.
            _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The socket that the service manager holds and has passed on, if it has. It stays when the
/// daemon goes, and callers wait in it until the next one comes.
///
/// # Errors
/// What was passed on is no Unix socket.
///
/// # Panics
/// Outside of a Tokio runtime.
pub(crate) fn passed_socket() -> Result<Option<Socket>, ListenError> {
    let Some(listener) = ListenFd::from_env().take_unix_listener(0).map_err(ListenError::Passed)?
    else {
        return Ok(None);
    };
    listener.set_nonblocking(true).map_err(ListenError::Passed)?;
    let listener = UnixListener::from_std(listener).map_err(ListenError::Passed)?;
    // Its file belongs to the service manager.
    let file = SocketFile { path: PathBuf::new(), identity: None };
    Ok(Some(Socket { listener, _file: file }))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Listens on a Unix socket that only the daemon's user can open.
///
/// A socket that an earlier daemon left behind is removed, once nobody answers on it.
///
/// # Errors
/// Another daemon answers there, or the socket cannot be made.
///
/// # Panics
/// Outside of a Tokio runtime.
pub(crate) fn bind_socket(path: &Path) -> Result<Socket, ListenError> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_PATH {
        return Err(ListenError::PathTooLong { path: path.into(), length });
    }
    let failed = |source| ListenError::Socket { path: path.into(), source };
    let listener = match bind_private(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            bind_private(path)
        }
        bound => bound,
    };
    let listener = listener.map_err(failed)?;
    let file = SocketFile { path: path.into(), identity: identity(path) };
    Ok(Socket { listener, _file: file })
}

/// A socket's file gets the mode that the socket has when it is bound, so that
/// there is no moment at which others can open it.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    use rustix::fs::{Mode, chmod, fchmod};
    let mode = Mode::RUSR | Mode::WUSR;
    let socket = UnixSocket::new_stream()?;
    fchmod(&socket, mode)?;
    socket.bind(path)?;
    // Not every system does it at bind.
    chmod(path, mode)?;
    socket.listen(BACKLOG)
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Socket { path: path.into(), source };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    // Connecting to an ordinary file is refused too, and it may be somebody's.
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.into() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Ok(_) => Err(ListenError::InUse { path: path.into() }),
        Err(error) => Err(failed(error)),
    }
}

/// Listens on an address; where the API is `open` to whoever comes, on a loopback address only.
///
/// # Errors
/// The address can be reached by others and must not, or cannot be had.
pub(crate) async fn bind_address(
    listen: SocketAddr,
    open: bool,
) -> Result<TcpListener, ListenError> {
    if open && !listen.ip().is_loopback() {
        return Err(ListenError::NotLoopback { listen });
    }
    TcpListener::bind(listen).await.map_err(|source| ListenError::Address { listen, source })
}

impl Listener for Socket {
    type Io = <UnixListener as Listener>::Io;
    type Addr = <UnixListener as Listener>::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Listener::local_addr(&self.listener)
    }
}

/// A listener that knows who comes.
pub(crate) trait Door: Listener {
    /// Who has come, for the audit log.
    fn caller(io: &Self::Io, address: &Self::Addr) -> Caller;
}

impl Door for Socket {
    fn caller(io: &Self::Io, _: &Self::Addr) -> Caller {
        // A caller that has gone already is nobody any more.
        let uid = io.peer_cred().map_or_else(|_| "?".into(), |peer| peer.uid().to_string());
        Caller(format!("uid {uid}").into())
    }
}

impl Door for TcpListener {
    fn caller(_: &Self::Io, address: &Self::Addr) -> Caller {
        Caller(address.to_string().into())
    }
}

/// Serves until `stopping`, and then lets answers in hand go out.
pub(crate) async fn serve<D: Door>(mut door: D, router: Router, stopping: CancellationToken) {
    let tasks = TaskTracker::new();
    let connections = Arc::<Connections>::default();
    let abandon = CancellationToken::new();
    let mut pauses = Pauses::default();
    loop {
        let accepting = async {
            let (io, address) = door.accept().await;
            (io, address, Arc::new(connections.enter().await))
        };
        let (io, address, guest) = tokio::select! {
            accepted = Boundary::AdminListener.hold(accepting) => match accepted {
                Ok(accepted) => accepted,
                // The door is still there; only the one that was coming in is not.
                Err(_) => {
                    let pause = Boundary::AdminListener.again_after(&mut pauses);
                    tokio::select! {
                        () = time::sleep(pause) => continue,
                        () = stopping.cancelled() => break,
                    }
                }
            },
            () = stopping.cancelled() => break,
        };
        pauses.succeeded();
        Boundary::AdminListener.works();
        let (caller, router, of) = (D::caller(&io, &address), router.clone(), Arc::clone(&guest));
        let service = service_fn(move |request: Request<Incoming>| {
            let in_hand = InHand::begin(&of);
            let mut request = request.map(|body| in_hand.request(Body::new(body)));
            request.extensions_mut().insert(caller.clone());
            let answer = answer(request, router.clone());
            async move { Ok::<_, Infallible>(answer.await.map(|body| in_hand.answer(body))) }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEAD);
        let connection = http.serve_connection(TokioIo::new(io), service);
        let (stopping, abandon) = (stopping.clone(), abandon.clone());
        let served = async move {
            tokio::pin!(connection);
            tokio::select! {
                // A connection that broke is its caller's to notice.
                _ = &mut connection => return,
                () = guest.close.cancelled() => return,
                () = stopping.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                _ = connection => {}
                () = abandon.cancelled() => {}
            }
        };
        tasks.spawn(async { _ = Boundary::AdminConnection.hold(served).await });
    }
    // The file goes before the last answers do: nobody new should come.
    drop(door);
    tasks.close();
    if time::timeout(GRACE, tasks.wait()).await.is_err() {
        abandon.cancel();
        tasks.wait().await;
    }
}

/// Answers a request. A panic costs that request only.
async fn answer(mut request: Request<Body>, router: Router) -> Response {
    let answering = async {
        match settle(&mut request) {
            Ok(()) => router.oneshot(request).await.unwrap_or_else(|never| match never {}),
            Err(problem) => problem.into_response(),
        }
    };
    let answer = Boundary::AdminRequest.hold(answering).await;
    answer.unwrap_or_else(|panic| Problem::broke(&panic).into_response())
}
