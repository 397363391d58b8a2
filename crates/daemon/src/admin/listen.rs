//! Where the API is served: a Unix socket that only its owner can open, and a
//! loopback address.

use std::{
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

use axum::{Router, serve::Listener};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixListener, UnixSocket},
    sync::Semaphore,
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The longest path of a socket in bytes, without the final zero: `sun_path` has 108.
const MAX_PATH: usize = 107;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Connections that are served at once on one listener.
const MAX_CONNECTIONS: usize = 256;

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
        "the address {listen} can be reached from elsewhere; [admin] listen takes loopback addresses only, such as 127.0.0.1:9670"
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

/// Listens on a loopback address.
///
/// # Errors
/// The address is no loopback address, or cannot be had.
pub(crate) async fn bind_loopback(listen: SocketAddr) -> Result<TcpListener, ListenError> {
    if !listen.ip().is_loopback() {
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

/// Serves until `stopping`, and then lets answers in hand go out.
pub(crate) async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    stopping: CancellationToken,
) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let abandon = CancellationToken::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.expect("nobody closes the semaphore");
        let (io, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        let connection = http.serve_connection(TokioIo::new(io), service);
        let (stopping, abandon) = (stopping.clone(), abandon.clone());
        connections.spawn(async move {
            let _place = place;
            tokio::pin!(connection);
            tokio::select! {
                // A connection that broke is its caller's to notice.
                _ = &mut connection => return,
                () = stopping.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                _ = connection => {}
                () = abandon.cancelled() => {}
            }
        });
    }
    // The file goes before the last answers do: nobody new should come.
    drop(listener);
    connections.close();
    if time::timeout(GRACE, connections.wait()).await.is_err() {
        abandon.cancel();
        connections.wait().await;
    }
}
