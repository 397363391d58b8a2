//! HTTP requests of guests, only to hosts that the operator allows.
//!
//! The name is held against the list, then each address that it resolves to is
//! checked, and the connection goes to a checked address and nowhere else, so
//! that a name cannot change its meaning in between. Redirects are not followed:
//! the guest is given them, and a request of its own is checked like any other.
//!
//! Whatever goes wrong is told to the guest as status 0 and an empty body, and
//! written to the actor's log; the guest decides what to make of it.

use std::{
    collections::BTreeMap,
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use bytes::Bytes;
use reflowd_runtime::{HttpRequest, RequestSpan, TurnTrace, excerpt};
use serde::Deserialize;
use thiserror::Error;
use ureq::{
    Agent, Body,
    config::Config,
    http::{Request, Response, Uri, request::Builder},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

/// Bytes of a response's body; what is longer is refused.
const MAX_BODY: u64 = 16 << 20;

/// Bytes of a request's JSON: its address and headers, of which servers take less.
pub(crate) const MAX_REQUEST: usize = 256 << 10;

/// Bytes that the host holds at most while a guest asks: what the request's JSON is taken
/// apart into, and the answer with its headers.
pub(crate) const MAX_ANSWER: u64 = MAX_BODY + 16 * MAX_REQUEST as u64;

/// The methods that a guest may use. `CONNECT` would make a tunnel to anywhere, and the
/// answer to `TRACE` shows a proxy's credentials.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Headers that the host writes itself, in small letters: they say whom a request is for,
/// where it ends, and what the connection is used for afterwards. Two that disagree make
/// one request of several, or a request for a host that is not allowed.
const RESERVED: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether the header of a request is reserved for the host.
#[must_use]
pub fn is_reserved_header(name: &str) -> bool {
    // Some servers take one for the other.
    let name = name.to_ascii_lowercase().replace('_', "-");
    RESERVED.contains(&name.as_str())
}

/// The headers that carry a W3C trace context.
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// A JSON object.
    pub(crate) headers: Bytes,
    pub(crate) body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    #[error("the request is no JSON object with a `url`: {0}")]
    Request(String),
    #[error("the host `{0}` is not in `allow_hosts`")]
    HostNotAllowed(String),
    #[error("only http and https can be asked, not {0}")]
    Scheme(String),
    #[error("the method {0} cannot be used; there are {methods}", methods = METHODS.join(", "))]
    Method(String),
    #[error("the header `{0}` is the host's to write; leave it out")]
    Reserved(String),
    #[error("the turn has no time left")]
    NoTime,
    #[error("the answer has more than {MAX_BODY} bytes")]
    TooLarge,
    #[error("the request's JSON has more than {MAX_REQUEST} bytes")]
    TooLong,
    #[error("{0}")]
    NoRoom(String),
    #[error("{0}")]
    Failed(String),
}

/// Checks the length of a request's JSON.
///
/// # Errors
/// It is longer.
pub(crate) fn check_size(written: &[u8]) -> Result<(), HttpError> {
    if written.len() > MAX_REQUEST { Err(HttpError::TooLong) } else { Ok(()) }
}

/// A request as guests write it.
#[derive(Deserialize)]
struct Written {
    url: String,
    #[serde(default, alias = "header")]
    headers: BTreeMap<String, String>,
    method: Option<String>,
}

/// Makes a request that is over by `deadline`, in the turn's trace unless the guest names
/// another. Blocks.
pub(crate) fn request(
    written: &[u8],
    body: &[u8],
    trace: Option<&TurnTrace>,
    allow_hosts: &[String],
    deadline: Instant,
) -> Result<Answer, HttpError> {
    let written: Written =
        serde_json::from_slice(written).map_err(|e| HttpError::Request(e.to_string()))?;
    let uri: Uri = written.url.parse().map_err(|e| HttpError::Request(format!("`url`: {e}")))?;
    let scheme = uri.scheme_str().unwrap_or("none");
    if !matches!(scheme, "http" | "https") {
        return Err(HttpError::Scheme(scheme.into()));
    }
    let host = uri.host().unwrap_or_default();
    if !allows(allow_hosts, host) {
        return Err(HttpError::HostNotAllowed(host.into()));
    }
    let method = written.method.as_deref().unwrap_or("GET").to_uppercase();
    if !METHODS.contains(&method.as_str()) {
        return Err(HttpError::Method(excerpt(method.as_bytes())));
    }
    if let Some(name) = written.headers.keys().find(|name| is_reserved_header(name)) {
        return Err(HttpError::Reserved(name.clone()));
    }
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(HttpError::NoTime);
    }
    let config = Config::builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .timeout_global(Some(left))
        .build();
    let resolver = Checked { allow_hosts: allow_hosts.to_vec(), inner: DefaultResolver::default() };
    let agent = Agent::with_parts(config, DefaultConnector::default(), resolver);

    let span = trace.map(TurnTrace::request);
    let about = HttpRequest::of(&method, &written.url);
    let outcome = run(
        &agent,
        Request::builder().method(method.as_str()).uri(uri),
        &written,
        body,
        span.as_ref(),
    );
    if let Some(span) = span {
        let status = outcome.as_ref().ok().map(|answer| answer.status);
        let failure = outcome.as_ref().err().map(|error| ("http", error.to_string()));
        span.end(HttpRequest { status, ..about }, failure);
    }
    outcome
}

/// Sends what the guest has written, and reads the answer.
fn run(
    agent: &Agent,
    mut request: Builder,
    written: &Written,
    body: &[u8],
    span: Option<&RequestSpan>,
) -> Result<Answer, HttpError> {
    let names = |own: &str| written.headers.keys().any(|name| name.eq_ignore_ascii_case(own));
    // What vendors have added belongs to the context, so a guest's own context goes alone.
    if let Some(span) = span.filter(|_| !names(TRACEPARENT)) {
        request = request.header(TRACEPARENT, span.traceparent());
        if let Some(state) = span.tracestate().filter(|_| !names(TRACESTATE)) {
            request = request.header(TRACESTATE, state);
        }
    }
    for (name, value) in &written.headers {
        request = request.header(name, value);
    }
    let failed = |error: ureq::Error| HttpError::Failed(error.to_string());
    let wrong = |error: ureq::http::Error| HttpError::Request(error.to_string());
    let response = if body.is_empty() {
        agent.run(request.body(()).map_err(wrong)?)
    } else {
        agent.run(request.body(body).map_err(wrong)?)
    };
    answer(response.map_err(failed)?)
}

fn answer(response: Response<Body>) -> Result<Answer, HttpError> {
    let status = response.status().as_u16();
    let headers: BTreeMap<_, _> = response
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    let headers = serde_json::to_vec(&headers).expect("strings can be written").into();
    let mut body = Vec::new();
    let reader = response.into_body().into_reader();
    reader
        .take(MAX_BODY + 1)
        .read_to_end(&mut body)
        .map_err(|error| HttpError::Failed(error.to_string()))?;
    if body.len() as u64 > MAX_BODY {
        return Err(HttpError::TooLarge);
    }
    Ok(Answer { status, headers, body: body.into() })
}

/// Whether the list has the host: by name, below a `*.name`, or by `*`.
pub(crate) fn allows(allow_hosts: &[String], host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host).trim_matches(['[', ']']);
    let matches = |allowed: &String| {
        let allowed = allowed.to_ascii_lowercase();
        match allowed.strip_prefix('*') {
            Some("") => true,
            Some(suffix) => {
                suffix.starts_with('.') && host.len() > suffix.len() && host.ends_with(suffix)
            }
            None => allowed.trim_matches(['[', ']']) == host,
        }
    };
    !host.is_empty() && allow_hosts.iter().any(matches)
}

/// Whether a connection may go to the address: a public one, or one that is listed itself.
fn may_reach(allow_hosts: &[String], ip: IpAddr) -> bool {
    let listed = |allowed: &String| allowed.trim_matches(['[', ']']).parse() == Ok(ip);
    is_public(ip) || allow_hosts.iter().any(listed)
}

/// Whether the address belongs to the internet, and not to this machine or a network around it.
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || a == 0
        || a >= 240
        // Shared by carriers, IETF assignments, benchmarks.
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xfe == 18))
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match [a, b, c, d, e, f] {
        // Written as IPv6 and meant as IPv4: mapped, compatible, by NAT64, by 6to4.
        [0, 0, 0, 0, 0, 0xffff | 0] | [0x64, 0xff9b, 0, 0, 0, 0] => v4(g, h),
        [0x2002, high, low, ..] => v4(high, low),
        // Global unicast is 2000::/3; Teredo tunnels to anywhere.
        _ => a & 0xe000 == 0x2000 && !(a == 0x2001 && b == 0),
    }
}

/// Resolves names to addresses that may be reached.
#[derive(Debug)]
struct Checked {
    allow_hosts: Vec<String>,
    inner: DefaultResolver,
}

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let mut checked = self.empty();
        for address in &found {
            if may_reach(&self.allow_hosts, address.ip()) {
                checked.push(*address);
            }
        }
        if checked.is_empty() {
            let host = uri.host().unwrap_or_default();
            let why = format!(
                "`{host}` resolves to an address that is not public; list the address itself in `allow_hosts` to allow it"
            );
            return Err(ureq::Error::Io(std::io::Error::other(why)));
        }
        Ok(checked)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        thread::JoinHandle,
        time::Duration,
    };

    use reflowd_runtime::Trace;

    use super::*;

    #[track_caller]
    fn host(list: &str, host: &str, expected: bool) {
        let list: Vec<_> = list.split_whitespace().map(String::from).collect();
        assert_eq!(allows(&list, host), expected, "{list:?} {host}");
    }

    #[test]
    fn hosts_are_exact_or_below_a_star() {
        host("", "example.com", false);
        host("example.com", "example.com", true);
        host("Example.com", "EXAMPLE.COM.", true);
        host("example.com", "www.example.com", false);
        host("*.example.com", "www.example.com", true);
        host("*.example.com", "a.b.example.com", true);
        host("*.example.com", "example.com", false);
        host("*.example.com", "badexample.com", false);
        host("*.example.com", ".example.com", false);
        host("*", "anything", true);
        host("*", "", false);
        host("*example.com", "badexample.com", false);
        host("::1", "[::1]", true);
    }

    #[track_caller]
    fn reach(list: &str, ip: &str, expected: bool) {
        let list: Vec<_> = list.split_whitespace().map(String::from).collect();
        assert_eq!(may_reach(&list, ip.parse().unwrap()), expected, "{list:?} {ip}");
    }

    #[test]
    fn addresses_that_are_not_public_must_be_listed_themselves() {
        for public in ["1.1.1.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            reach("*", public, true);
        }
        for inner in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "192.0.0.8",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::127.0.0.1",
            "2001::1",
        ] {
            reach("* localhost", inner, false);
            reach(inner, inner, true);
        }
        reach("127.0.0.2", "127.0.0.1", false);
    }

    /// A server on loopback that gives each connection one of these answers.
    fn server(answers: Vec<String>) -> (u16, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let serve = |answer: String| {
                let (mut stream, _) = listener.accept().unwrap();
                let request = read_request(&mut stream);
                stream.write_all(answer.as_bytes()).unwrap();
                request
            };
            answers.into_iter().map(serve).collect()
        });
        (port, thread)
    }

    fn read_request(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        let body_at = |text: &[u8]| text.windows(4).position(|w| w == b"\r\n\r\n").map(|i| i + 4);
        loop {
            let whole = body_at(&text).is_some_and(|at| {
                let head = String::from_utf8_lossy(&text[..at]).to_lowercase();
                let length = head.split("content-length: ").nth(1);
                let length = length.and_then(|l| l.split("\r\n").next()?.parse::<usize>().ok());
                text.len() >= at + length.unwrap_or(0)
            });
            if whole || stream.read(&mut byte).unwrap() == 0 {
                return String::from_utf8_lossy(&text).into_owned();
            }
            text.push(byte[0]);
        }
    }

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn ask(url: &str, body: &str, list: &[&str]) -> Result<Answer, HttpError> {
        let method = if body.is_empty() { "get" } else { "post" };
        ask_with(url, method, &[("x-mine", "yes")], body, list)
    }

    fn ask_with(
        url: &str,
        method: &str,
        headers: &[(&str, &str)],
        body: &str,
        list: &[&str],
    ) -> Result<Answer, HttpError> {
        let headers: BTreeMap<_, _> = headers.iter().copied().collect();
        let written = serde_json::json!({ "url": url, "method": method, "headers": headers });
        let list: Vec<_> = list.iter().map(ToString::to_string).collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        let trace = TurnTrace::passing(Trace::of_text(TRACE, Some("a=1")).unwrap());
        request(written.to_string().as_bytes(), body.as_bytes(), Some(&trace), &list, deadline)
    }

    #[test]
    fn a_guest_that_names_its_own_trace_gets_nothing_added_to_it() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let (port, served) = server(vec![ok.into()]);
        let own = TRACE.replace("4bf9", "0000");
        let url = format!("http://127.0.0.1:{port}/");
        ask_with(&url, "get", &[("Traceparent", &own)], "", &["127.0.0.1"]).unwrap();
        let request = &served.join().unwrap()[0];
        assert!(request.contains(&own) && !request.contains(TRACE), "{request}");
        assert!(!request.contains("tracestate"), "{request}");
    }

    #[test]
    fn an_allowed_host_answers() {
        let ok = "HTTP/1.1 201 Created\r\nx-a: b\r\ncontent-length: 2\r\n\r\nhi";
        let (port, served) = server(vec![ok.into()]);
        let answer = ask(&format!("http://127.0.0.1:{port}/p?q"), "data", &["127.0.0.1"]).unwrap();
        assert_eq!((answer.status, &answer.body[..]), (201, &b"hi"[..]));
        assert!(std::str::from_utf8(&answer.headers).unwrap().contains(r#""x-a":"b""#));
        let request = &served.join().unwrap()[0];
        assert!(request.starts_with("POST /p?q HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("x-mine: yes") && request.ends_with("data"), "{request}");
        assert!(request.contains(&format!("traceparent: {TRACE}\r\n")), "{request}");
        assert!(request.contains("tracestate: a=1\r\n"), "{request}");
    }

    #[test]
    fn a_redirect_is_given_to_the_guest() {
        let moved =
            "HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n";
        let (port, served) = server(vec![moved.into()]);
        let answer = ask(&format!("http://127.0.0.1:{port}/"), "", &["127.0.0.1"]).unwrap();
        assert_eq!(answer.status, 302);
        served.join().unwrap();
    }

    #[test]
    fn what_is_not_allowed_is_never_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for (url, list, part) in [
            (format!("http://127.0.0.1:{port}/"), &["example.com"][..], "not in `allow_hosts`"),
            (format!("http://127.0.0.1:{port}/"), &["*"], "not public"),
            (format!("http://localhost:{port}/"), &["localhost"], "not public"),
            (format!("http://2130706433:{port}/"), &["*"], "not public"),
            (format!("http://[::ffff:127.0.0.1]:{port}/"), &["*"], "not public"),
            (format!("http://example.com@127.0.0.1:{port}/"), &["example.com"], "`127.0.0.1`"),
            (format!("ftp://127.0.0.1:{port}/"), &["*"], "not ftp"),
            ("/path".into(), &["*"], "not none"),
            ("http://".into(), &["*"], "`url`"),
        ] {
            let why = ask(&url, "", list).unwrap_err().to_string();
            assert!(why.contains(part), "{url}: {why}");
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "nobody has connected");
    }

    #[test]
    fn what_frames_or_routes_a_request_is_not_a_guest_s_to_say() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let refused = |method: &str, header: (&str, &str)| {
            ask_with(&url, method, &[header], "12345", &["127.0.0.1"]).unwrap_err().to_string()
        };
        for method in ["CONNECT", "connect", "TRACE", "TRACK", "PROPFIND", "", "GET / HTTP/1.1\r\n"]
        {
            let why = refused(method, ("x-mine", "yes"));
            assert!(why.contains("there are GET, HEAD, POST"), "{method}: {why}");
        }
        for name in
            RESERVED.into_iter().chain(["Host", "TRANSFER-ENCODING", "Content_Length", "tE"])
        {
            let why = refused("POST", (name, "5"));
            assert!(why.starts_with(&format!("the header `{name}` is the host's")), "{why}");
        }
        for header in
            [("x\r\nhost", "a"), ("x-mine", "a\r\nhost: b"), ("transfer-encoding ", "chunked")]
        {
            let why = refused("POST", header);
            assert!(why.starts_with("the request is no"), "{header:?}: {why}");
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "nobody has connected");
    }

    #[test]
    fn every_method_that_a_guest_may_use_arrives() {
        for method in METHODS {
            let answer = "HTTP/1.1 204 No Content\r\n\r\n";
            let (port, served) = server(vec![answer.into()]);
            let url = format!("http://127.0.0.1:{port}/");
            let body = if ["POST", "PUT", "PATCH"].contains(&method) { "data" } else { "" };
            let answer = ask_with(&url, method, &[("x-mine", "yes")], body, &["127.0.0.1"]);
            assert_eq!(answer.unwrap().status, 204, "{method}");
            let request = &served.join().unwrap()[0];
            assert!(request.starts_with(&format!("{method} / HTTP/1.1\r\n")), "{request}");
        }
    }

    #[test]
    fn a_silent_server_takes_no_longer_than_the_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!(r#"{{"url":"http://{}/"}}"#, listener.local_addr().unwrap());
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(100);
        let result = request(url.as_bytes(), b"", None, &["127.0.0.1".into()], deadline);
        assert!(matches!(result, Err(HttpError::Failed(_))), "{result:?}");
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn an_endless_answer_is_refused() {
        let size = MAX_BODY + 1;
        let long = "x".repeat(usize::try_from(size).unwrap());
        let (port, served) =
            server(vec![format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n{long}")]);
        let result = ask(&format!("http://127.0.0.1:{port}/"), "", &["127.0.0.1"]);
        assert!(matches!(result, Err(HttpError::TooLarge)), "{result:?}");
        served.join().unwrap();
    }
}
