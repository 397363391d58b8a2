//! A server on loopback that answers as a test wants, well or badly.
//!
//! It speaks HTTP/1.1 by hand, one connection a request, so that it can break
//! off, go on for ever and say what is not so.

#![allow(dead_code, reason = "each suite of tests uses a part of it")]

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};

/// How a request is answered.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// With these bytes, and their length.
    Whole(Vec<u8>),
    /// With these bytes, in chunks.
    Chunked(Vec<u8>),
    /// With these bytes and neither length nor chunks, until the connection ends.
    Unmeasured(Vec<u8>),
    /// With bytes that never end, and without a length.
    Endless,
    /// With chunks that never end.
    EndlessChunks,
    /// With a length that no module has, and nothing after it.
    Huge,
    /// With a byte in a while, for ever.
    Trickle,
    /// With nothing at all.
    Silence,
    /// With a head and these bytes, and then nothing.
    Stall(Vec<u8>),
    /// With these bytes, of which one more is announced.
    TooShort(Vec<u8>),
    /// With these bytes, of which one less is announced.
    TooLong(Vec<u8>),
    /// With chunks that break off.
    BrokenChunks(Vec<u8>),
    /// With these bytes, said to be compressed.
    Gzip(Vec<u8>),
    /// With a status and nothing else.
    Status(u16),
    /// With a redirect to there.
    Redirect(String),
    /// With what is no HTTP.
    Nonsense,
}

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) port: u16,
    scheme: &'static str,
    requests: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

/// An authority of a test's own, and a server's certificate that it has signed.
pub(crate) struct Authority {
    /// The authority's certificate.
    pub(crate) pem: String,
    server: Arc<ServerConfig>,
}

impl Authority {
    /// One that vouches for `localhost` and `127.0.0.1`.
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let chain = vec![certificate.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Self { pem, server: Arc::new(server) }
    }
}

impl Server {
    /// Answers every request by its path.
    pub(crate) fn start(answer: impl Fn(&str) -> Way + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(answer))
    }

    /// The same, by HTTPS.
    pub(crate) fn start_tls(
        authority: &Authority,
        answer: impl Fn(&str) -> Way + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(Arc::clone(&authority.server)), Arc::new(answer))
    }

    fn listen(tls: Option<Arc<ServerConfig>>, answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (counted, stop) = (Arc::clone(&requests), Arc::clone(&stopped));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let (answer, tls) = (Arc::clone(&answer), tls.clone());
                let (counted, stop) = (Arc::clone(&counted), Arc::clone(&stop));
                // Whoever asked may have gone by then.
                thread::spawn(move || serve(stream, tls, &*answer, &counted, &stop));
            }
        });
        Self { port, scheme, requests, stopped }
    }

    /// The URL of a path on it.
    pub(crate) fn url(&self, path: &str) -> String {
        let host = if self.scheme == "https" { "localhost" } else { "127.0.0.1" };
        format!("{}://{host}:{}{path}", self.scheme, self.port)
    }

    /// How often it was asked for something.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Acquire)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // The listener looks when somebody comes.
        _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

type Answer = dyn Fn(&str) -> Way + Send + Sync;

fn serve(
    mut stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    answer: &Answer,
    requests: &AtomicUsize,
    stopped: &AtomicBool,
) -> io::Result<()> {
    // A silent answer ends with the server.
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    match tls {
        None => reply(&mut stream, answer, requests, stopped),
        Some(config) => {
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(connection, stream);
            let served = reply(&mut stream, answer, requests, stopped);
            stream.conn.send_close_notify();
            stream.flush()?;
            served
        }
    }
}

fn reply(
    stream: &mut (impl Read + Write),
    answer: &Answer,
    requests: &AtomicUsize,
    stopped: &AtomicBool,
) -> io::Result<()> {
    let path = read_path(stream, stopped)?;
    requests.fetch_add(1, Ordering::AcqRel);
    let head = |status: &str, more: String| {
        format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n")
    };
    let ok = |more: String| head("200 OK", more);
    let measured = |length: usize| ok(format!("Content-Length: {length}\r\n"));
    let chunked = || ok("Transfer-Encoding: chunked\r\n".into());
    let chunk =
        |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let mut put = |bytes: &[u8]| stream.write_all(bytes).and_then(|()| stream.flush());
    match answer(&path) {
        Way::Whole(body) => {
            put(measured(body.len()).as_bytes())?;
            put(&body)
        }
        Way::Chunked(body) => {
            put(chunked().as_bytes())?;
            for part in body.chunks(1000) {
                put(&chunk(part))?;
            }
            put(b"0\r\n\r\n")
        }
        Way::Unmeasured(body) => {
            put(ok(String::new()).as_bytes())?;
            put(&body)
        }
        Way::Endless => {
            put(ok(String::new()).as_bytes())?;
            loop {
                put(&[0; 8192])?;
            }
        }
        Way::EndlessChunks => {
            put(chunked().as_bytes())?;
            loop {
                put(&chunk(&[0; 8192]))?;
            }
        }
        Way::Huge => put(measured(1 << 40).as_bytes()),
        Way::Trickle => {
            put(measured(1 << 20).as_bytes())?;
            while !stopped.load(Ordering::Acquire) {
                put(b"x")?;
                thread::park_timeout(Duration::from_millis(20));
            }
            Ok(())
        }
        Way::Silence => wait(stream, stopped),
        Way::Stall(body) => {
            put(measured(body.len() + 1).as_bytes())?;
            put(&body)?;
            wait(stream, stopped)
        }
        Way::TooShort(body) => {
            put(measured(body.len() + 1).as_bytes())?;
            put(&body)
        }
        Way::TooLong(body) => {
            put(measured(body.len() - 1).as_bytes())?;
            put(&body)
        }
        Way::BrokenChunks(body) => {
            put(chunked().as_bytes())?;
            put(&chunk(&body))?;
            put(b"ffff\r\nhalf")
        }
        Way::Gzip(body) => {
            let length = body.len();
            put(ok(format!("Content-Encoding: gzip\r\nContent-Length: {length}\r\n")).as_bytes())?;
            put(&body)
        }
        Way::Status(status) => {
            put(head(&format!("{status} So"), "Content-Length: 0\r\n".into()).as_bytes())
        }
        Way::Redirect(to) => {
            put(head("302 Found", format!("Location: {to}\r\nContent-Length: 0\r\n")).as_bytes())
        }
        Way::Nonsense => put(b"this is no HTTP\r\n\r\n"),
    }
}

/// The path of a request, once its head is there.
fn read_path(stream: &mut impl Read, stopped: &AtomicBool) -> io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => head.push(byte[0]),
            Err(_) if stopped.load(Ordering::Acquire) => {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Err(error) if is_patience(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    Ok(head.split(' ').nth(1).unwrap_or_default().to_owned())
}

/// Until the other side or the server is gone.
fn wait(stream: &mut impl Read, stopped: &AtomicBool) -> io::Result<()> {
    let mut byte = [0];
    while !stopped.load(Ordering::Acquire) {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if is_patience(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_patience(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
