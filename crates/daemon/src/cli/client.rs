//! Talks to a running daemon over its socket.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use reflowd_runtime::printable_lines;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    task::JoinSet,
    time::timeout,
};

use super::{Exit, Stop};
use crate::config::{self, Environment, Sources};

/// The socket of the system's service.
const SYSTEM_SOCKET: &str = "/run/reflowd/reflowd.sock";

/// The socket that systemd holds for the service, where `reflowd.socket` is installed. It comes
/// last: whoever connects waits through a restart there, and starts a service that is stopped.
const HELD_SOCKET: &str = "/run/reflowd.sock";

/// How long a daemon may take to begin to answer what only looks.
const PATIENCE: Duration = Duration::from_secs(30);

/// What goes to the daemon.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Where a daemon's socket may be, in the order in which it is looked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Places {
    places: Vec<PathBuf>,
    /// Whether the caller has named one.
    given: bool,
}

impl Places {
    /// Where the caller says, or else where the configuration and the system say.
    pub(crate) fn new(given: Option<PathBuf>, flag: Option<&Path>) -> Self {
        let environment = Environment::of_process();
        // A configuration with mistakes may still say where its socket is.
        let configured = config::locate(flag, &environment).ok().map(|path| {
            config::parse(Sources::read(&path, &environment), &environment).0.admin.socket
        });
        Self::of(given, configured)
    }

    /// Whether the caller has named one.
    pub(super) fn is_given(&self) -> bool {
        self.given
    }

    /// The same, but for the socket whose service starts when somebody connects.
    pub(super) fn without_held(mut self) -> Self {
        if !self.given {
            self.places.retain(|place| place != Path::new(HELD_SOCKET));
        }
        self
    }

    fn of(given: Option<PathBuf>, configured: Option<PathBuf>) -> Self {
        if let Some(given) = given {
            // Whoever names a daemon does not mean another one.
            return Self { places: vec![given], given: true };
        }
        let mut places: Vec<_> = configured.into_iter().collect();
        for of_system in [SYSTEM_SOCKET, HELD_SOCKET].map(PathBuf::from) {
            if !places.contains(&of_system) {
                places.push(of_system);
            }
        }
        Self { places, given: false }
    }
}

/// A connection to a daemon.
pub(crate) struct Client {
    sender: SendRequest<Body>,
    /// Moves the bytes for as long as the client lives.
    _connection: JoinSet<()>,
}

impl Client {
    /// Connects to the first place where a daemon answers.
    ///
    /// # Errors
    /// [`Exit::NoDaemon`] with the places tried; [`Exit::Permission`] where a
    /// socket is there and not ours to open, and none that is.
    pub(crate) async fn connect(places: &Places) -> Result<Self, Stop> {
        let (mut tried, mut denied) = (Vec::new(), None);
        for place in &places.places {
            match UnixStream::connect(place).await {
                Ok(stream) => return Self::over(stream).await,
                // A user whom the service's own folder is closed to may still have been given
                // the socket that systemd holds.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    denied.get_or_insert((place, error));
                }
                Err(error) => {
                    tried.push(format!("\n  {}: {}", place.display(), why(place, &error)));
                }
            }
        }
        if let Some((place, error)) = denied {
            let what = format!("cannot open the socket `{}`", place.display());
            return Err(Stop::new(Exit::Permission, anyhow::Error::new(error).context(what)));
        }
        let error = anyhow!(
            "no daemon answers; start one with `reflowd run`, or say where it is: --config with the file that it runs with, or --socket; tried:{}",
            tried.concat()
        );
        Err(Stop::new(Exit::NoDaemon, error))
    }

    async fn over(stream: UnixStream) -> Result<Self, Stop> {
        let (sender, connection) = http1::handshake(TokioIo::new(Patient(stream)))
            .await
            .context("cannot talk to the daemon")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Whoever waits for an answer learns of a broken connection from there.
            _ = connection.await;
        });
        Ok(Self { sender, _connection: tasks })
    }

    /// Asks for something that is JSON.
    ///
    /// # Errors
    /// The daemon's problem, in its words.
    pub(crate) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Stop> {
        let response = self.request(Method::GET, path, None, nothing()).await?;
        json(response).await
    }

    /// Asks for something and gives the answer as it comes.
    ///
    /// # Errors
    /// The daemon's problem, in its words.
    pub(crate) async fn stream(&mut self, path: &str) -> Result<Incoming, Stop> {
        Ok(self.request(Method::GET, path, None, nothing()).await?.into_body())
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// The daemon's problem, in its words.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        body: Option<(&'static str, Body)>,
    ) -> Result<Response<Incoming>, Stop> {
        let (content, body) = match body {
            Some((content, body)) => (Some(content), body),
            None => (None, nothing()),
        };
        self.request(Method::POST, path, content, body).await
    }

    /// Puts something in the place of what there is.
    ///
    /// # Errors
    /// The daemon's problem, in its words.
    pub(crate) async fn put(
        &mut self,
        path: &str,
        content: &'static str,
        body: Body,
    ) -> Result<Response<Incoming>, Stop> {
        self.request(Method::PUT, path, Some(content), body).await
    }

    /// Asks for something to be taken away.
    ///
    /// # Errors
    /// The daemon's problem, in its words.
    pub(crate) async fn delete<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Stop> {
        let response = self.request(Method::DELETE, path, None, nothing()).await?;
        json(response).await
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        content: Option<&'static str>,
        body: Body,
    ) -> Result<Response<Incoming>, Stop> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "reflowd")
            // What goes on for long comes as lines, the rest as one value.
            .header(header::ACCEPT, "application/json, application/x-ndjson")
            .header(header::USER_AGENT, concat!("reflowd/", env!("CARGO_PKG_VERSION")));
        if let Some(content) = content {
            request = request.header(header::CONTENT_TYPE, content);
        }
        let request = request.body(body).context("the request cannot be written")?;
        let looks = *request.method() == Method::GET;
        let answer = self.sender.send_request(request);
        // What changes something may take as long as it takes.
        let answer = if looks {
            timeout(PATIENCE, answer).await.map_err(|_| silent())?
        } else {
            answer.await
        };
        let response = answer.context("the daemon hung up")?;
        if response.status().is_success() { Ok(response) } else { Err(problem(response).await) }
    }
}

/// The daemon is there and says nothing.
fn silent() -> Stop {
    let seconds = PATIENCE.as_secs();
    let error = anyhow!(
        "the daemon has not answered for {seconds} seconds; it may be halted or stuck: look at its log"
    );
    Stop::new(Exit::NoDaemon, error)
}

/// The whole of an answer that is JSON.
pub(super) async fn json<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Stop> {
    let body = text(response.into_body()).await?;
    let value = serde_json::from_slice(&body).context(
        "the daemon's answer is not what this version expects; are both of one version?",
    )?;
    Ok(value)
}

/// The whole of an answer.
pub(super) async fn text(body: Incoming) -> Result<Bytes, Stop> {
    Ok(body.collect().await.context("the daemon hung up in the middle of its answer")?.to_bytes())
}

/// A connection that goes on reading when the other side takes nothing more.
///
/// A daemon that refuses a request in the middle says why and hangs up. Its answer is there
/// to be read, whatever becomes of the rest of the request.
struct Patient(UnixStream);

impl Patient {
    /// What is not taken any more counts as written.
    fn passed_over(wrote: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        wrote.map(|wrote| match wrote {
            Err(error) if hung_up(&error) => Ok(length),
            wrote => wrote,
        })
    }

    fn ended(ended: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        ended.map(|ended| match ended {
            Err(error) if hung_up(&error) => Ok(()),
            ended => ended,
        })
    }
}

fn hung_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Self::passed_over(Pin::new(&mut self.0).poll_write(context, bytes), bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bytes.iter().map(|bytes| bytes.len()).sum();
        Self::passed_over(Pin::new(&mut self.0).poll_write_vectored(context, bytes), length)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::ended(Pin::new(&mut self.0).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::ended(Pin::new(&mut self.0).poll_shutdown(context))
    }
}

/// What the daemon says is the matter.
async fn problem(response: Response<Incoming>) -> Stop {
    let status = response.status();
    let body = match text(response.into_body()).await {
        Ok(body) => body,
        Err(stop) => return stop,
    };
    let document: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut words = match document["detail"].as_str() {
        Some(detail) => detail.to_owned(),
        None => format!("the daemon answered {status}"),
    };
    if let Some(line) = document["line"].as_u64() {
        words = format!("line {line}: {words}");
    }
    if let Some(accepted) = document["accepted"].as_u64() {
        words = format!("{words} ({accepted} accepted before it)");
    }
    if let Some(id) = document["id"].as_str() {
        words = format!("{words} (message {id})");
    }
    Stop::new(exit_of(status), anyhow!(printable_lines(&words, "    ")))
}

/// The exit code that a problem's status comes to.
fn exit_of(status: StatusCode) -> Exit {
    match status {
        StatusCode::BAD_REQUEST
        | StatusCode::UNPROCESSABLE_ENTITY
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE => Exit::Data,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Exit::TryAgain,
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Exit::Permission,
        _ => Exit::Failed,
    }
}

/// The few reasons for which nobody answers, in plain words.
fn why(place: &Path, error: &io::Error) -> String {
    let is_socket = |found: fs::Metadata| found.file_type().is_socket();
    match error.kind() {
        io::ErrorKind::NotFound => "no such socket".into(),
        io::ErrorKind::ConnectionRefused if !fs::metadata(place).is_ok_and(is_socket) => {
            "this is no socket".into()
        }
        io::ErrorKind::ConnectionRefused => "a socket that nobody listens on".into(),
        _ => error.to_string(),
    }
}

fn nothing() -> Body {
    Empty::new().map_err(never).boxed_unsync()
}

/// A body that is known as a whole.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(never).boxed_unsync()
}

fn never(error: Infallible) -> io::Error {
    match error {}
}

/// Takes pieces and gives lines, without their ends.
#[derive(Default)]
pub(super) struct LineBuffer(BytesMut);

impl LineBuffer {
    /// Adds a piece.
    pub(super) fn add(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// The next line whose end has come.
    pub(super) fn line(&mut self) -> Option<Bytes> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = self.0.split_to(end + 1).freeze();
        Some(line.slice(..end))
    }
}

/// A part of a path or a query's value, with everything escaped that has a meaning there.
pub(super) fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_names_a_socket_means_that_one() {
        let places = |given: Option<&str>, configured: Option<&str>| {
            Places::of(given.map(PathBuf::from), configured.map(PathBuf::from)).places
        };
        assert_eq!(places(Some("/a"), Some("/b")), [Path::new("/a")]);
        let of_system = [SYSTEM_SOCKET, HELD_SOCKET].map(PathBuf::from);
        assert_eq!(places(None, Some("/b"))[0], Path::new("/b"));
        assert_eq!(places(None, Some("/b"))[1..], of_system);
        assert_eq!(places(None, Some(SYSTEM_SOCKET)), of_system);
        assert_eq!(places(None, None), of_system);
    }

    #[test]
    fn who_only_completes_a_word_starts_no_service() {
        let found = Places::of(None, Some("/b".into())).without_held();
        assert_eq!(found.places, [Path::new("/b"), Path::new(SYSTEM_SOCKET)]);
        let given = Places::of(Some(HELD_SOCKET.into()), None).without_held();
        assert_eq!(given.places, [Path::new(HELD_SOCKET)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_says_nothing_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut client = Client::over(ours).await.unwrap();
        let stop = client.get::<Value>("/v1/actors").await.unwrap_err();
        assert_eq!(stop.exit, Exit::NoDaemon);
    }

    #[test]
    fn a_path_keeps_what_is_put_into_it_together() {
        assert_eq!(escaped("in-1_a.b~"), "in-1_a.b~");
        assert_eq!(escaped("a/b?c=d&e ü"), "a%2Fb%3Fc%3Dd%26e%20%C3%BC");
    }
}
