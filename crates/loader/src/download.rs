//! Downloads of modules: a server is trusted with nothing but the way to the bytes.
//!
//! What is wanted is said by its digest, so all that a server can do is not to
//! deliver. It is given a bound of time and of bytes for that, and one address:
//! a name is resolved once, each address is held against the rules, and every
//! connection goes to one that has passed. Redirects are followed on the same
//! server only, and nothing is unpacked.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustls::Error as TlsError;
use thiserror::Error;
use ureq::{
    Agent, Body,
    config::Config,
    http::{Request, Response, StatusCode, Uri, header},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use crate::{InvalidUrl, ModuleUrl, http};

/// Redirects that are followed: a server that wants more goes in circles.
const MAX_REDIRECTS: usize = 5;

/// What we say that we are.
const USER_AGENT: &str = concat!("reflowd/", env!("CARGO_PKG_VERSION"));

/// What downloads are held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadRules {
    /// The hosts that may be asked, `modules.internal` or `*.internal`; they may have any
    /// address. Where the list is empty, every host may be asked that has a public address.
    pub hosts: Vec<String>,
    /// Who may vouch for a server, besides the authorities that browsers trust.
    pub authorities: Authorities,
    /// How long a download may take, all in all.
    pub timeout: Duration,
}

impl DownloadRules {
    /// Whether the URL's host may be asked, whatever its address.
    #[must_use]
    pub fn allow(&self, url: &ModuleUrl) -> bool {
        self.hosts.is_empty() || http::allows(&self.hosts, url.uri().host().unwrap_or_default())
    }
}

impl Default for DownloadRules {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            authorities: Authorities::default(),
            timeout: Duration::from_secs(60),
        }
    }
}

/// Certificates of authorities of one's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorities(Arc<Vec<Vec<u8>>>);

/// A text has no certificates that can be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidAuthorities {
    /// It is no PEM.
    #[error("this is no PEM: {0}")]
    Pem(String),
    /// It is PEM, and has something else in it.
    #[error("there is no certificate in it; one begins with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// A certificate in it is damaged.
    #[error("its certificate number {number} cannot be read: {why}")]
    Certificate {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// A module was not downloaded. Another time it may go well.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DownloadError {
    /// The operator has listed hosts, and this one is not among them.
    #[error("`{host}` is not in `download_hosts`; add it there if it may be asked")]
    HostNotListed {
        /// The host.
        host: String,
    },
    /// The name has no address.
    #[error("the host `{host}` is not found: {why}; check its name")]
    Unresolved {
        /// The host.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// The name leads into a network that is nobody else's business.
    #[error(
        "`{host}` has the address {ip}, which is not public; list the host in `download_hosts` if that is meant"
    )]
    NotPublic {
        /// The host.
        host: String,
        /// Its address.
        ip: IpAddr,
    },
    /// No connection, or one that broke before an answer came.
    #[error("the server cannot be reached: {0}; see whether it runs")]
    Unreachable(String),
    /// Nobody vouches for the server.
    #[error(
        "the server's certificate is not trusted: {0}; name the file of the authority that has signed it as `authorities`"
    )]
    Certificate(String),
    /// The server sends us elsewhere.
    #[error(
        "the server redirects to {to}, and only redirects on the same host and port are followed; write that URL if it is meant"
    )]
    Redirect {
        /// Where to.
        to: String,
    },
    /// The server sends us to something that is no URL for a module.
    #[error("the server redirects to what is no URL for a module: {0}")]
    BadRedirect(InvalidUrl),
    /// The server sends us around.
    #[error("the server redirects more than {MAX_REDIRECTS} times; write the URL at the end")]
    Redirects,
    /// The server has no such module, or does not give it out.
    #[error("the server answers {status}; check the URL")]
    Status {
        /// The status.
        status: u16,
    },
    /// The answer is compressed, though nobody asked for that.
    #[error(
        "the answer is encoded as {0}, and nothing is unpacked here; have the server send the file as it is"
    )]
    Encoded(String),
    /// The answer has more bytes than a module may.
    #[error("the answer has more than the {max} bytes that `module_size` allows")]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// Not done in time.
    #[error("it takes more than {0:?}; see why the server is slow, or raise `download_timeout`")]
    Timeout(Duration),
    /// The answer is not what HTTP says that it should be.
    #[error("the answer broke off or makes no sense: {0}")]
    Broken(String),
}

impl Authorities {
    /// All certificates of a PEM text.
    ///
    /// # Errors
    /// There is none, or one that cannot be used.
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidAuthorities> {
        let mut certificates = Vec::new();
        let mut roots = rustls::RootCertStore::empty();
        for item in parse_pem(pem) {
            let item = item.map_err(|error| InvalidAuthorities::Pem(error.to_string()))?;
            if let PemItem::Certificate(certificate) = item {
                let number = certificates.len() + 1;
                let der = certificate.der().to_vec();
                roots.add(der.clone().into()).map_err(|error| InvalidAuthorities::Certificate {
                    number,
                    why: error.to_string(),
                })?;
                certificates.push(der);
            }
        }
        if certificates.is_empty() {
            return Err(InvalidAuthorities::NoCertificate);
        }
        Ok(Self(Arc::new(certificates)))
    }

    fn roots(&self) -> Option<RootCerts> {
        let certificate = |der: &Vec<u8>| Certificate::from_der(der).to_owned();
        (!self.0.is_empty()).then(|| self.0.iter().map(certificate).into())
    }
}

/// Downloads at most `max` bytes. Blocks.
///
/// # Errors
/// They could not be had.
pub(crate) fn download(
    url: &ModuleUrl,
    max: u64,
    rules: &DownloadRules,
) -> Result<Bytes, DownloadError> {
    let client = Client::new(url, rules)?;
    let mut at = url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let response = client.get(&at)?;
        match response.status() {
            StatusCode::OK => return client.body(response, max),
            status if status.is_redirection() => at = redirected(&at, &response)?,
            status => return Err(DownloadError::Status { status: status.as_u16() }),
        }
    }
    Err(DownloadError::Redirects)
}

fn redirected(at: &ModuleUrl, response: &Response<Body>) -> Result<ModuleUrl, DownloadError> {
    let location = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
    let Some(location) = location else {
        return Err(DownloadError::Status { status: response.status().as_u16() });
    };
    let to = at.redirected(location).map_err(DownloadError::BadRedirect)?;
    if at.same_origin(&to) { Ok(to) } else { Err(DownloadError::Redirect { to: to.to_string() }) }
}

/// One download from one server.
struct Client<'r> {
    rules: &'r DownloadRules,
    deadline: Instant,
    resolver: Pinned,
}

impl<'r> Client<'r> {
    fn new(url: &ModuleUrl, rules: &'r DownloadRules) -> Result<Self, DownloadError> {
        let uri = url.uri();
        let host = uri.host().unwrap_or_default();
        if !rules.allow(url) {
            return Err(DownloadError::HostNotListed { host: host.into() });
        }
        let reach = if !rules.hosts.is_empty() {
            Reach::Any
        } else if uri.scheme_str() == Some("http") {
            Reach::Loopback
        } else {
            Reach::Public
        };
        let resolver = Pinned { reach, addresses: Arc::default() };
        Ok(Self { rules, deadline: Instant::now() + rules.timeout, resolver })
    }

    /// Asks, and has the head of the answer.
    fn get(&self, url: &ModuleUrl) -> Result<Response<Body>, DownloadError> {
        // A connection for which nobody of the one kind vouches is tried with the other.
        if let Some(own) = self.rules.authorities.roots() {
            match self.get_trusting(url, own) {
                Err(DownloadError::Certificate(_)) => {}
                response => return response,
            }
        }
        self.get_trusting(url, RootCerts::WebPki)
    }

    fn get_trusting(
        &self,
        url: &ModuleUrl,
        roots: RootCerts,
    ) -> Result<Response<Body>, DownloadError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(DownloadError::Timeout(self.rules.timeout));
        }
        let config = Config::builder()
            // The environment's proxies would be asked for what only some may see.
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_global(Some(left))
            .user_agent(USER_AGENT)
            .accept("application/wasm, */*")
            .accept_encoding("identity")
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::default(), self.resolver.clone());
        let request = Request::get(url.uri()).body(()).expect("a URL makes a request");
        agent.run(request).map_err(|error| self.failed(error, DownloadError::Unreachable))
    }

    /// The bytes of an answer.
    fn body(&self, response: Response<Body>, max: u64) -> Result<Bytes, DownloadError> {
        let encoding = response.headers().get(header::CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|encoding| *encoding != "identity") {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            return Err(DownloadError::Encoded(encoding));
        }
        let body = response.into_body();
        if body.content_length().is_some_and(|length| length > max) {
            return Err(DownloadError::TooLarge { max });
        }
        let mut bytes = Vec::new();
        // One byte more than allowed tells an answer that has no end.
        body.into_reader()
            .take(max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed(error.into(), DownloadError::Broken))?;
        if bytes.len() as u64 > max {
            return Err(DownloadError::TooLarge { max });
        }
        Ok(bytes.into())
    }

    /// What the client says, in our words; what has none is `otherwise`.
    fn failed(&self, error: ureq::Error, otherwise: fn(String) -> DownloadError) -> DownloadError {
        match error {
            ureq::Error::Timeout(_) => DownloadError::Timeout(self.rules.timeout),
            ureq::Error::Rustls(error) => of_tls(&error, otherwise),
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                DownloadError::Timeout(self.rules.timeout)
            }
            ureq::Error::Io(error) => match error.get_ref() {
                Some(inner) if let Some(error) = inner.downcast_ref::<DownloadError>() => {
                    error.clone()
                }
                Some(inner) if let Some(error) = inner.downcast_ref::<TlsError>() => {
                    of_tls(error, otherwise)
                }
                _ => otherwise(error.to_string()),
            },
            error => otherwise(error.to_string()),
        }
    }
}

fn of_tls(error: &TlsError, otherwise: fn(String) -> DownloadError) -> DownloadError {
    match error {
        TlsError::InvalidCertificate(why) => DownloadError::Certificate(why.to_string()),
        error => otherwise(error.to_string()),
    }
}

/// Which addresses may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// This machine.
    Loopback,
    /// The internet.
    Public,
    /// Any: an operator has listed the host.
    Any,
}

impl Reach {
    fn covers(self, ip: IpAddr) -> bool {
        match self {
            Self::Loopback => ip.is_loopback(),
            Self::Public => http::is_public(ip),
            Self::Any => true,
        }
    }
}

/// Resolves the one name of a download once, to addresses that may be asked.
#[derive(Clone, Debug)]
struct Pinned {
    reach: Reach,
    addresses: Arc<OnceLock<Vec<SocketAddr>>>,
}

impl Resolver for Pinned {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = || uri.host().unwrap_or_default().to_owned();
        let refuse = |error: DownloadError| ureq::Error::Io(io::Error::other(error));
        let mut answer = self.empty();
        if let Some(addresses) = self.addresses.get() {
            addresses.iter().for_each(|address| answer.push(*address));
            return Ok(answer);
        }
        let found = match DefaultResolver::default().resolve(uri, config, timeout) {
            Ok(found) => found,
            Err(error @ ureq::Error::Timeout(_)) => return Err(error),
            Err(error) => {
                let why = error.to_string();
                return Err(refuse(DownloadError::Unresolved { host: host(), why }));
            }
        };
        let covered = |address: &&SocketAddr| self.reach.covers(address.ip());
        let addresses: Vec<_> = found.iter().filter(covered).copied().collect();
        match (addresses.is_empty(), found.first()) {
            (true, Some(address)) => {
                Err(refuse(DownloadError::NotPublic { host: host(), ip: address.ip() }))
            }
            _ => {
                addresses.iter().for_each(|address| answer.push(*address));
                _ = self.addresses.set(addresses);
                Ok(answer)
            }
        }
    }
}
