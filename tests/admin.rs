//! The admin API against callers who may not, and callers who mean harm.

use std::{
    fs,
    io::{BufReader, Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::rig::{Daemon, PATIENCE, Response, World, guest, read_response};

const READER: &str = "a-reader-s-token-0001";
const SENDER: &str = "a-sender-s-token-0002";
const OPERATOR: &str = "an-operator-s-token-0003";

/// A daemon that listens on TCP, and where.
fn start(tokens: bool) -> (Daemon, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let asked = "tokens = { read = { file = \"read\" }, send = { file = \"send\" }, operate = { env = \"OPERATE\" } }";
    let world = World::new(&format!(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nquiet = \"10ms\"\nautostart = false\n\
         [admin]\nlisten = \"{address}\"\n{}\n[actors.relay]\nmodule = \"relay\"\n",
        if tokens { asked } else { "" }
    ));
    for (file, token) in [("read", READER), ("send", SENDER)] {
        let path = world.path(&format!("config/{file}"));
        fs::write(&path, token).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    world.module("relay", &guest("relay"));
    let mut command = world.command(&[]);
    command.env("OPERATE", OPERATOR);
    (world.start_as(command), address)
}

/// A request over TCP with headers of its own.
fn ask(address: &str, line: &str, headers: &str, body: &str) -> Response {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    _ = stream.write_all(body.as_bytes());
    read_response(&mut BufReader::new(stream))
}

#[test]
fn over_tcp_each_token_may_do_what_its_role_is_for() {
    let (daemon, address) = start(true);
    let with = |token: &str, line: &str| {
        let headers = format!("Host: {address}\r\nAuthorization: Bearer {token}\r\n");
        ask(&address, line, &headers, r#"{"type":"Integer","data":1}"#).status
    };
    let (look, send, pause) =
        ("GET /v1/actors", "POST /v1/actors/relay/ports/in", "POST /v1/actors/relay/pause");
    let found: Vec<_> = [READER, SENDER, OPERATOR, "nobody-s-token-0004"]
        .map(|token| [look, send, pause].map(|line| with(token, line)))
        .into();
    assert_eq!(found, [[200, 403, 403], [403, 202, 403], [200, 202, 200], [401, 401, 401]]);
    let open = ask(&address, "GET /livez", &format!("Host: {address}\r\n"), "");
    assert_eq!(open.status, 200);
    // Whoever can open the socket is its owner.
    assert_eq!(daemon.get("/v1/actors").status, 200);
    daemon.post("/v1/actors/relay/resume", "");
    daemon.until("both messages are done", |d| d.sum("reflowd_messages_completed_total") == 2.0);
    daemon.until("the last write is written down", |d| d.log_text().contains("/resume"));
    let log = daemon.log_text();
    let audit: Vec<_> = log.lines().filter(|line| line.contains("\"target\":\"audit\"")).collect();
    let said =
        |parts: &[&str]| audit.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(said(&["pause", "\"role\":\"operate\"", "\"status\":200", "127.0.0.1"]), "{audit:#?}");
    assert!(said(&["pause", "\"role\":\"refused\"", "\"status\":403"]), "{audit:#?}");
    assert!(said(&["resume", "\"from\":\"uid ", "\"status\":200"]), "{audit:#?}");
    // Messages are no decisions of anybody.
    assert!(!said(&["\"status\":202"]), "{audit:#?}");
    for token in [READER, SENDER, OPERATOR] {
        assert!(!log.contains(token), "the log has a token");
    }
}

#[test]
fn a_token_that_others_can_have_is_refused() {
    for (key, mode, part) in [
        ("{ file = \"token\" }", 0o644, "others can read the token"),
        ("\"a-token-in-plain-text\"", 0o600, "stands in the configuration"),
        ("{ file = \"short\" }", 0o600, "is shorter than 16"),
    ] {
        let world = World::new(&format!("[admin]\ntokens = {{ operate = {key} }}\n"));
        for (file, token) in [("token", OPERATOR), ("short", "1234")] {
            let path = world.path(&format!("config/{file}"));
            fs::write(&path, token).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let output = world.run(&["check"]);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains(part) && text.contains("E0112"), "{text}");
        assert!(!text.contains(OPERATOR), "{text}");
    }
    let world = World::new("[admin]\nlisten = \"0.0.0.0:9670\"\n");
    let output = world.run(&["check"]);
    assert_eq!(output.status.code(), Some(78));
}

#[test]
fn a_web_page_cannot_drive_the_daemon() {
    let (daemon, address) = start(false);
    for headers in [
        "Host: evil.example\r\n".to_owned(),
        format!("Host: {address}\r\nOrigin: https://evil.example\r\n"),
        format!("Host: {address}\r\nOrigin: null\r\n"),
        format!("Host: {address}.evil.example\r\n"),
    ] {
        let answer = ask(&address, "POST /v1/actors/relay/pause", &headers, "");
        assert_eq!(answer.status, 403, "{headers}: {answer:?}");
    }
    assert_eq!(daemon.actor("relay")["state"], "active");
    let own =
        ask(&address, "GET /v1/actors", &format!("Host: LOCALHOST:{}\r\n", &address[10..]), "");
    assert_eq!(own.status, 200, "{own:?}");
}

#[test]
fn a_request_names_one_host_and_a_target_of_reasonable_length() {
    let (daemon, address) = start(false);
    let one = format!("Host: {address}\r\n");
    let two = format!("{one}Host: {address}\r\n");
    let long = format!("GET /v1/actors?{}", "x".repeat(9000));
    let foreign = "GET http://evil.example/v1/actors";
    let own = format!("GET http://{address}/v1/actors");
    let evil = "Host: evil.example\r\n";
    for (line, headers, status) in [
        ("GET /v1/actors", &*one, 200),
        ("GET /v1/actors", "", 400),
        ("GET /v1/actors", &*two, 400),
        ("GET /v1/actors", "Host: x@localhost\r\n", 400),
        ("GET /livez", &*two, 400),
        (foreign, &*one, 403),
        (&*own, evil, 200),
        (&*long, &*one, 414),
    ] {
        let answer = ask(&address, line, headers, "");
        assert_eq!(
            answer.status,
            status,
            "{} {headers:?}: {answer:?}",
            &line[..line.len().min(40)]
        );
        if status != 200 {
            assert_eq!(answer.json()["status"], status, "{answer:?}");
        }
    }
    // The socket is no other.
    for (hosts, status) in [("", 400), ("Host: localhost\r\nHost: localhost\r\n", 400)] {
        let mut stream = daemon.connect();
        let request = format!("GET /v1/actors HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_response(&mut BufReader::new(stream)).status, status);
    }
    let packed = format!("{one}Content-Encoding: gzip\r\n");
    let answer = ask(&address, "POST /v1/actors/relay/ports/in?type=Any", &packed, "1");
    assert_eq!(answer.status, 415, "{answer:?}");
}

/// Times of an ordinary caller's requests.
struct Times(Vec<Duration>);

impl Times {
    fn of(count: usize, mut once: impl FnMut()) -> Self {
        let mut times: Vec<_> = (0..count)
            .map(|_| {
                let began = Instant::now();
                once();
                began.elapsed()
            })
            .collect();
        times.sort();
        Self(times)
    }

    fn at(&self, share: f64) -> Duration {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let at = (self.0.len() as f64 * share) as usize;
        self.0[at.min(self.0.len() - 1)]
    }
}

/// `ps` and `send`, as an ordinary caller has them.
fn ordinary(daemon: &Daemon, when: &str) {
    let ps = Times::of(200, || assert_eq!(daemon.get("/v1/actors").status, 200));
    let send = Times::of(200, || daemon.send("relay.in", "1"));
    println!(
        "{when}: ps p50 {:?} p99 {:?}, send p50 {:?} p99 {:?}",
        ps.at(0.5),
        ps.at(0.99),
        send.at(0.5),
        send.at(0.99)
    );
}

#[test]
fn callers_who_mean_harm_harm_nobody_else() {
    let (daemon, address) = start(false);
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    ordinary(&daemon, "alone");

    // Slow ones of every kind, on the socket and on TCP: more than may be open at once.
    let beginnings: [&[u8]; 4] = [
        b"",
        b"GET /v1/actors HTTP/1.1\r\nHo",
        b"POST /v1/actors/relay/ports/in HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ];
    let mut slow: Vec<Box<dyn Write>> = Vec::new();
    for n in 0..1200 {
        let mut stream: Box<dyn Write> = if n % 2 == 0 {
            Box::new(UnixStream::connect(daemon.world.socket()).unwrap())
        } else {
            Box::new(TcpStream::connect(&address).unwrap())
        };
        _ = stream.write_all(beginnings[n % 4]);
        slow.push(stream);
    }
    ordinary(&daemon, "beside 1,200 slow connections");

    let host = format!("Host: {address}\r\n");
    let huge = format!("{host}X-Huge: {}\r\n", "x".repeat(200_000));
    let mut stream = TcpStream::connect(&address).unwrap();
    _ = stream.write_all(format!("GET /v1/actors HTTP/1.1\r\n{huge}\r\n").as_bytes());
    let mut answer = String::new();
    _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let body = format!("\"{}\"", "x".repeat(17 << 20));
    let large = ask(&address, "POST /v1/actors/relay/ports/in?type=String", &host, &body);
    assert_eq!(large.status, 413, "{large:?}");

    // Bodies that are no messages, from several callers at once.
    let refused: usize = thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                let (address, host) = (&address, &host);
                scope.spawn(move || {
                    (0..2500)
                        .filter(|n| {
                            let bodies =
                                ["", "{", "nonsense", "{\"type\":\"Nothing\"}", "[1,2", "\u{0}"];
                            let body = bodies[(caller + n) % bodies.len()];
                            let path = "POST /v1/actors/relay/ports/in";
                            let status = ask(address, path, host, body).status;
                            (400..500).contains(&status)
                        })
                        .count()
                })
            })
            .collect();
        ordinary(&daemon, "beside malformed bodies");
        callers.into_iter().map(|caller| caller.join().unwrap()).sum()
    });
    println!("malformed bodies refused: {refused}");
    assert_eq!(refused, 10_000);
    drop(slow);
    daemon.until("all that was taken is done", |d| {
        d.sum("reflowd_messages_completed_total") == 600.0
    });
}
