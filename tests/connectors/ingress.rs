//! `std:http-in`: what is sent to an address.

use std::{
    fs,
    io::{BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    thread,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use super::{Client, HEAD, address, header};
use crate::rig::{Daemon, World, guest, shaky};

/// A door with routes to a relay that ends on the screen.
fn config(door: &str) -> String {
    format!(
        r#"{HEAD}
        [actors.door]
        module = "std:http-in"
        {door}
        [actors.a]
        module = "relay"
        [actors.screen]
        module = "std:stdout"
        [[wires]]
        from = "door.orders"
        to = "a.in"
        [[wires]]
        from = "a.out"
        to = "screen.in"
        "#
    )
}

fn start(door: &str) -> Daemon {
    let world = World::new(&config(door));
    world.module("relay", &guest("relay"));
    world.start()
}

/// A file that only its owner can read.
fn private(world: &World, path: &str, text: &str) {
    fs::write(world.path(path), format!("{text}\n")).unwrap();
    fs::set_permissions(world.path(path), fs::Permissions::from_mode(0o600)).unwrap();
}

/// One route, without an answer.
const ORDERS: &str =
    r#"config = { listen = "127.0.0.1:0", routes = [{ path = "/orders", port = "orders" }] }"#;

#[test]
fn what_is_sent_to_a_route_comes_out_of_its_port() {
    let mut daemon = start(ORDERS);
    let mut client = Client::new(address(&daemon, "door"));
    let data = r#"{"b":1.0, "a":1e2,"n":123456789012345678901234567890}"#;
    let reply = client.post("/orders?from=here", data);
    assert_eq!(reply.status, 202, "{reply:?}");
    assert_eq!(reply.json()["id"].as_str().unwrap().len(), 32);
    assert_eq!(daemon.line().unwrap(), data);
    // And again on the same connection.
    assert_eq!(client.post("/orders", "7").status, 202);
    assert_eq!(daemon.line().unwrap(), "7");
}

#[test]
fn a_sender_can_wait_for_what_becomes_of_a_message() {
    let door = r#"config = { listen = "127.0.0.1:0", routes = [
        { path = "/data", port = "orders", wait = "a.out" },
        { path = "/message", port = "orders", wait = "a.out", what = "message", type = "Object" },
        { path = "/none", port = "orders", wait = "a.error" },
        { path = "/late", port = "orders", wait = "a.out", timeout = "20ms" },
    ] }"#;
    let mut daemon = start(door);
    let mut client = Client::new(address(&daemon, "door"));
    let reply = client.post("/data", r#"{"n": 1}"#);
    assert_eq!((reply.status, &*reply.body), (200, r#"{"n": 1}"#), "{reply:?}");
    assert_eq!(reply.header("reflowd-message-id").unwrap().len(), 32);
    let reply = client.post("/message", r#"{"n": 2}"#);
    assert_eq!((reply.status, &*reply.body), (200, r#"{"type":"Object","data":{"n": 2}}"#));
    let reply = client.post("/none", "3");
    assert_eq!((reply.status, &*reply.body), (204, ""));
    for expected in [r#"{"n": 1}"#, r#"{"n": 2}"#, "3"] {
        assert_eq!(daemon.line().unwrap(), expected);
    }
    daemon.post("/v1/actors/a/pause", "");
    let reply = client.post("/late", "4");
    assert_eq!((reply.status, &reply.json()["title"]), (504, &"no answer yet".into()));
    assert_eq!(reply.json()["id"].as_str().unwrap().len(), 32);
    // It stays accepted.
    daemon.post("/v1/actors/a/resume", "");
    assert_eq!(daemon.line().unwrap(), "4");
}

#[test]
fn a_sender_hears_at_once_of_a_dead_letter() {
    let door = r#"config = { listen = "127.0.0.1:0", routes = [{ path = "/orders", port = "orders", wait = "a.out", timeout = "1h" }] }"#;
    let world = World::new(&config(door).replace("\"relay\"", "\"relay\"\nretries = 0"));
    world.module("relay", &shaky("v1", "steady"));
    let daemon = world.start();
    let mut client = Client::new(address(&daemon, "door"));
    let reply = client.post("/orders", r#"{"sender":0,"seq":1,"poison":true}"#);
    assert_eq!((reply.status, &reply.json()["title"]), (502, &"dead letter".into()), "{reply:?}");
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 1.0);
}

#[test]
fn what_cannot_be_taken_is_refused_by_name() {
    let door = r#"config = { listen = "127.0.0.1:0", max_body = 100, routes = [
        { path = "/orders", port = "orders", type = "Object" },
        { path = "/orders", port = "orders", method = "PUT" },
        { path = "/nowhere", port = "nowhere" },
    ] }"#;
    let daemon = start(door);
    let at = address(&daemon, "door");
    let json = "Content-Type: application/json\r\n";
    let long = "x".repeat(101);
    for (method, path, headers, body, status) in [
        ("POST", "/orders", json, "{", 400),
        ("POST", "/orders", json, "", 400),
        ("POST", "/orders", json, "7", 422),
        ("POST", "/other", json, "{}", 404),
        ("POST", "/orders/", json, "{}", 404),
        ("GET", "/orders", json, "", 405),
        ("DELETE", "/orders", json, "", 405),
        ("POST", "/orders", json, &*long, 413),
        ("POST", "/orders", "", "{}", 415),
        ("POST", "/orders", "Content-Type: text/plain\r\n", "{}", 415),
        ("POST", "/nowhere", json, "{}", 503),
        (
            "POST",
            "/orders",
            "Content-Type: application/json\r\nOrigin: http://example.com\r\n",
            "{}",
            403,
        ),
        ("POST", "/v1/reload", json, "{}", 404),
    ] {
        let mut client = Client::new(at);
        client.write(method, path, headers, body);
        let reply = client.read();
        assert_eq!(reply.status, status, "{method} {path} {body}: {reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        assert_eq!(reply.json()["status"], status);
        match status {
            405 => assert_eq!(reply.header("allow"), Some("POST, PUT")),
            503 => assert!(reply.header("retry-after").is_some()),
            _ => {}
        }
    }
    // A body that does not say how long it is.
    let mut client = Client::new(at);
    let head = "POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let stream = client.0.get_mut();
    stream.write_all(format!("{head}65\r\n{long}\r\n0\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(client.read().status, 413);
    // A name that somebody lets lead here.
    let stream = Client::new(at);
    let mut client = stream;
    let request = "POST /orders HTTP/1.1\r\nHost: evil.example\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    client.0.get_mut().write_all(request.as_bytes()).unwrap();
    assert_eq!(client.read().status, 403);
    assert_eq!(daemon.sum("reflowd_messages_accepted_total"), 0.0);
}

/// What comes back for these bytes: the status, the headers, and the body, as far as it is text.
fn raw(at: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(crate::rig::PATIENCE)).unwrap();
    // It may answer, and close, before it has read everything.
    _ = stream.write_all(request);
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn packed(coding: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Encoding: {coding}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(text).unwrap();
    packed.finish().unwrap()
}

#[test]
fn a_body_that_comes_packed_is_unpacked_within_its_bound() {
    let door = r#"config = { listen = "127.0.0.1:0", max_body = "1 MiB", routes = [{ path = "/orders", port = "orders" }] }"#;
    let mut daemon = start(door);
    let at = address(&daemon, "door");
    let brotli = [0x0b, 0x03, 0x80, b'{', b'"', b'n', b'"', b':', b'1', b'}', 0x03];
    let bodies =
        [("gzip", gzip(b"{\"n\":1}")), ("x-gzip", gzip(b"{\"n\":1}")), ("br", brotli.into())];
    for (coding, body) in bodies {
        let answer = raw(at, &packed(coding, &body));
        assert!(answer.starts_with("HTTP/1.1 202 "), "{coding}: {answer}");
        assert_eq!(daemon.line().unwrap(), "{\"n\":1}", "{coding}");
    }
    let text = |length: usize| format!("\"{}\"", " ".repeat(length - 2));
    let whole = raw(at, &packed("gzip", &gzip(text(1 << 20).as_bytes())));
    assert!(whole.starts_with("HTTP/1.1 202 "), "{whole}");
    assert_eq!(daemon.line().unwrap().len(), 1 << 20);
    let bomb = gzip(&vec![b' '; 512 << 20]);
    assert!(bomb.len() < 1 << 20);
    for (coding, body, status) in [
        ("gzip", &*gzip(text((1 << 20) + 1).as_bytes()), "413"),
        ("gzip", &*bomb, "413"),
        ("gzip", b"{\"n\":1}", "400"),
        ("gzip", &gzip(b"1")[..15], "400"),
        ("br", b"{\"n\":1}", "400"),
        ("deflate", b"1", "415"),
        ("zstd", b"1", "415"),
        ("gzip, br", b"1", "415"),
    ] {
        let answer = raw(at, &packed(coding, body));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{coding}: {answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        let says = format!("the body is not whole, or not {coding} as it says");
        assert_eq!(answer.contains(&says), status == "400", "{coding}: {answer}");
        let taken = header(&answer, "accept-encoding");
        assert_eq!(taken.as_deref(), (status == "415").then_some("gzip, br"), "{answer}");
    }
    // Each of them by two mailboxes.
    assert_eq!(daemon.sum("reflowd_messages_accepted_total"), 8.0);
}

#[test]
fn json_by_another_name_is_json() {
    let door = r#"config = { listen = "127.0.0.1:0", content_types = ["text/plain", "Application/X-AMZ"], routes = [{ path = "/orders", port = "orders" }] }"#;
    let mut daemon = start(door);
    let at = address(&daemon, "door");
    for (n, (content_type, taken)) in [
        ("application/json; charset=utf-8", true),
        ("application/cloudevents+json", true),
        ("application/vnd.api+json; ext=x", true),
        ("Application/LD+JSON", true),
        ("text/plain; charset=UTF-8", true),
        ("application/x-amz", true),
        ("text/html", false),
        ("application/x-www-form-urlencoded", false),
        ("+json", false),
        ("json", false),
        ("", false),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Client::new(at);
        client.write(
            "POST",
            "/orders",
            &format!("Content-Type: {content_type}\r\n"),
            &n.to_string(),
        );
        let reply = client.read();
        assert_eq!(reply.status, if taken { 202 } else { 415 }, "{content_type}: {reply:?}");
        if taken {
            assert_eq!(daemon.line().unwrap(), n.to_string());
        }
    }
    for wrong in ["text/plain; charset=utf-8", "text", "*/*", "text/ plain", "/"] {
        let world = World::new(&config(
            &ORDERS.replace("routes", &format!("content_types = [\"{wrong}\"], routes")),
        ));
        let output = world.run(&["check"]);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("such as text/plain"), "{said}");
    }
}

#[test]
fn what_no_reader_could_take_does_not_come_in() {
    let mut daemon = start(ORDERS);
    let mut client = Client::new(address(&daemon, "door"));
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for (body, why) in [
        ("1e400".to_owned(), "the number 1e400 fits neither"),
        (r#"{"a":[1,{"b":-1e999}]}"#.to_owned(), "-1e999 at `/a/1/b` fits neither"),
        (r#"{"a":"\ud800"}"#.to_owned(), "the string at `/a` has"),
        (nested(101), "nested deeper than 100 levels"),
        (nested(100_000), "nested deeper than 100 levels"),
    ] {
        let reply = client.post("/orders", &body);
        assert_eq!(reply.status, 422, "{reply:?}");
        assert!(reply.json()["detail"].as_str().unwrap().contains(why), "{reply:?}");
    }
    for body in [nested(100), r#""\ud83d\ude00""#.into(), "1e308".into(), "9".repeat(300)] {
        assert_eq!(client.post("/orders", &body).status, 202);
        assert_eq!(daemon.line().unwrap(), body);
    }
}

#[test]
fn a_request_that_could_be_taken_for_two_is_for_nobody() {
    let mut daemon = start(ORDERS);
    let at = address(&daemon, "door");
    let long = format!("/orders?{}", "x".repeat(9000));
    let longer = format!("/orders?{}", "x".repeat(60_000));
    for (line, hosts, status) in [
        ("/orders HTTP/1.1", "", 400),
        ("/orders HTTP/1.1", "Host: localhost\r\nHost: localhost\r\n", 400),
        ("/orders HTTP/1.1", "Host: localhost\r\nHost: evil.example\r\n", 400),
        ("/orders HTTP/1.0", "Host: localhost\r\nHost: localhost\r\n", 400),
        ("/orders HTTP/1.1", "Host: user@localhost\r\n", 400),
        ("/orders HTTP/1.1", "Host: localhost/x\r\n", 400),
        ("http://localhost/orders HTTP/1.1", "", 400),
        ("http://evil.example/orders HTTP/1.1", "Host: localhost\r\n", 403),
        ("http://localhost/orders HTTP/1.1", "Host: evil.example\r\n", 202),
        ("/orders HTTP/1.0", "Host: localhost\r\n", 202),
        (&format!("{long} HTTP/1.1"), "Host: localhost\r\n", 414),
        (&format!("{longer} HTTP/1.1"), "Host: localhost\r\n", 414),
    ] {
        let request = format!(
            "POST {line}\r\n{hosts}Content-Type: application/json\r\nContent-Length: 1\r\nConnection: close\r\n\r\n7"
        );
        let answer = raw(at, request.as_bytes());
        let said = answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        let line = &line[..line.len().min(60)];
        assert_eq!(said, Some(status), "{line} {hosts:?}: {answer}");
        if status == 202 {
            assert_eq!(daemon.line().unwrap(), "7");
        }
    }
}

#[test]
fn a_token_in_a_file_that_others_can_read_is_refused() {
    let token = "a token that nobody guesses";
    let door = r#"env = { TOKEN = { file = "token" }, OTHER = { file = "other" } }
        config = { listen = "127.0.0.1:0", token = "TOKEN", routes = [{ path = "/orders", port = "orders" }] }"#;
    let check = |mode: u32| {
        let world = World::new(&config(door));
        world.module("relay", &guest("relay"));
        fs::write(world.path("config/other"), "for all to see").unwrap();
        private(&world, "config/token", token);
        fs::set_permissions(world.path("config/token"), fs::Permissions::from_mode(mode)).unwrap();
        let output = world.run(&["check"]);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!said.contains(token), "{said}");
        (output.status.code(), said)
    };
    for mode in [0o644, 0o640, 0o602, 0o660] {
        let (code, said) = check(mode);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("E0112") && said.contains("others can read the token"), "{said}");
        assert!(said.contains("chmod 600"), "{said}");
    }
    assert_eq!(check(0o600).0, Some(0));
    assert_eq!(check(0o400).0, Some(0));
}

#[test]
fn who_shows_no_token_learns_nothing_and_who_does_may_only_send() {
    let token = "a token that nobody guesses";
    let door = r#"env = { TOKEN = { file = "token" } }
        config = { listen = "127.0.0.1:0", token = "TOKEN", routes = [{ path = "/orders", port = "orders" }] }"#;
    let world = World::new(&config(door));
    world.module("relay", &guest("relay"));
    private(&world, "config/token", token);
    let mut daemon = world.start();
    let at = address(&daemon, "door");
    let json = "Content-Type: application/json\r\n";
    for (path, authorization) in [
        ("/orders", ""),
        ("/nothing-there", ""),
        ("/orders", "Authorization: Bearer a token\r\n"),
        ("/orders", "Authorization: Basic a token that nobody guesses\r\n"),
        ("/orders", "Authorization: Bearer\r\n"),
    ] {
        let mut client = Client::new(at);
        client.write("POST", path, &format!("{json}{authorization}"), "1");
        let reply = client.read();
        assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")));
        assert!(!reply.body.contains("orders"), "{reply:?}");
    }
    let mut client = Client::new(at);
    client.write("POST", "/orders", &format!("{json}Authorization: Bearer {token}\r\n"), "1");
    assert_eq!(client.read().status, 202);
    assert_eq!(daemon.line().unwrap(), "1");
    for path in ["/v1/actors", "/v1/reload", "/metrics", "/livez"] {
        client.write("GET", path, &format!("{json}Authorization: Bearer {token}\r\n"), "");
        assert_eq!(client.read().status, 404, "{path}");
    }
    let shown = format!("{}{}", daemon.log_text(), daemon.get("/v1/actors").body);
    assert!(!shown.contains(token), "{shown}");
}

#[test]
fn a_full_mailbox_is_an_answer_and_nothing_is_half_accepted() {
    let both = r#"
        [actors.b]
        module = "relay"
        mailbox = 3
        [[wires]]
        from = "door.orders"
        to = "b.in"
    "#;
    let world = World::new(&format!("{}{both}", config(ORDERS)));
    world.module("relay", &guest("relay"));
    let mut daemon = world.start();
    daemon.post("/v1/actors/b/pause", "");
    daemon.until("b is paused", |d| d.actor("b")["state"] == "paused");
    let mut client = Client::new(address(&daemon, "door"));
    for n in 0..10 {
        let reply = client.post("/orders", &n.to_string());
        if n < 3 {
            assert_eq!(reply.status, 202, "{n}: {reply:?}");
            assert_eq!(daemon.line().unwrap(), n.to_string());
        } else {
            assert_eq!(reply.status, 429, "{n}: {reply:?}");
            assert_eq!(reply.header("retry-after"), Some("1"));
            assert_eq!(reply.json()["actor"], "b");
        }
    }
    daemon.post("/v1/actors/b/resume", "");
    daemon.until("b has all", |d| d.actor("b")["queued"] == 0);
    // What `b` had no room for, `a` was not given.
    assert_eq!(client.post("/orders", "10").status, 202);
    assert_eq!(daemon.line().unwrap(), "10");
}

#[test]
fn many_senders_lose_and_double_nothing() {
    const SENDERS: usize = 8;
    const EACH: usize = 300;
    let narrow = config(ORDERS).replace("module = \"relay\"", "module = \"relay\"\nmailbox = 4");
    let world = World::new(&narrow);
    world.module("relay", &guest("relay"));
    let mut daemon = world.start();
    let at = address(&daemon, "door");
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            thread::spawn(move || {
                let mut client = Client::new(at);
                let mut refused = 0;
                for n in 0..EACH {
                    let body = (sender * EACH + n).to_string();
                    loop {
                        match client.post("/orders", &body).status {
                            202 => break,
                            429 => refused += 1,
                            other => panic!("{other}"),
                        }
                    }
                }
                refused
            })
        })
        .collect();
    let mut lines: Vec<usize> =
        (0..SENDERS * EACH).map(|_| daemon.line().unwrap().parse().unwrap()).collect();
    let refused: usize = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
    println!("{} taken, {refused} told to come again", lines.len());
    // Each sender's are in its order.
    for sender in 0..SENDERS {
        let own = lines.iter().filter(|n| **n / EACH == sender);
        assert!(own.is_sorted(), "of {sender}");
    }
    lines.sort_unstable();
    assert_eq!(lines, (0..SENDERS * EACH).collect::<Vec<_>>());
}

#[test]
fn what_comes_too_fast_is_told_to_come_again() {
    let door = r#"config = { listen = "127.0.0.1:0", rate = 0.1, routes = [{ path = "/orders", port = "orders" }] }"#;
    let daemon = start(door);
    let mut client = Client::new(address(&daemon, "door"));
    assert_eq!(client.post("/orders", "1").status, 202);
    let reply = client.post("/orders", "2");
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("10")), "{reply:?}");
}

#[test]
fn a_tap_shows_what_comes_in() {
    let mut daemon = start(ORDERS);
    let mut command = daemon.world.command(&["tap", "door", "--limit", "1"]);
    let tap = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    daemon.until("the tap is open", |daemon| daemon.actor("door")["taps"] == 1);
    let reply = Client::new(address(&daemon, "door")).post("/orders", "7");
    assert_eq!(reply.status, 202);
    daemon.until("it has seen one and is gone", |daemon| daemon.actor("door")["taps"] == 0);
    let output = tap.wait_with_output().unwrap();
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&seen["port"], &seen["direction"]), (&"orders".into(), &"out".into()), "{seen}");
    assert_eq!((&seen["data"], &seen["to"][0]["id"]), (&7.into(), &reply.json()["id"]), "{seen}");
    assert_eq!(daemon.line().unwrap(), "7");
}

#[test]
fn connections_without_a_request_keep_nobody_out() {
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    let mut daemon = start(ORDERS);
    let at = address(&daemon, "door");
    let beginning = || {
        let mut stream = TcpStream::connect(at).unwrap();
        _ = stream.write_all(b"POST /orders HTTP/1.1\r\nHost: local");
        stream
    };
    // More than are served at once, and no more beyond it than the system lets wait.
    let _idle: Vec<_> = (0..1100).map(|_| beginning()).collect();
    let stream = TcpStream::connect(at).unwrap();
    // Shorter than a head may take: nobody has left by himself by then.
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    assert_eq!(Client(BufReader::new(stream)).post("/orders", "1").status, 202);
    assert_eq!(daemon.line().unwrap(), "1");
}

#[test]
fn large_bodies_that_do_not_end_keep_no_small_ones_out() {
    let large = "x".repeat(15 << 20);
    let door = r#"config = { listen = "127.0.0.1:0", max_body = "16 MiB", routes = [{ path = "/orders", port = "orders" }] }"#;
    let mut daemon = start(door);
    let at = address(&daemon, "door");
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n\"",
        large.len() + 2
    );
    let _begun: Vec<_> = (0..12)
        .map(|_| {
            let mut stream = TcpStream::connect(at).unwrap();
            // Those that come too late are told so, and need not send the rest.
            _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(large.as_bytes()));
            stream
        })
        .collect();
    let reply = Client::new(at).post("/orders", &format!("\"{large}\""));
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{reply:?}");
    assert_eq!(
        reply.json()["type"].as_str().map(|ty| ty.contains("crowded")),
        Some(true),
        "{reply:?}"
    );
    assert_eq!(Client::new(at).post("/orders", "1").status, 202);
    assert_eq!(daemon.line().unwrap(), "1");
}

#[test]
fn routes_are_edited_while_connections_stay_open() {
    let mut daemon = start(ORDERS);
    let at = address(&daemon, "door");
    let mut client = Client::new(at);
    assert_eq!(client.post("/orders", "1").status, 202);
    assert_eq!(daemon.line().unwrap(), "1");
    let edited = ORDERS.replace("routes = [", r#"routes = [{ path = "/new", port = "orders" }, "#);
    daemon.world.config(&config(&edited));
    daemon.reload();
    assert_eq!(daemon.actor("door")["generation"], 2);
    // The same connection, and a new one to the same address.
    assert_eq!(client.post("/new", "2").status, 202);
    assert_eq!(Client::new(at).post("/orders", "3").status, 202);
    assert_eq!([daemon.line().unwrap(), daemon.line().unwrap()], ["2", "3"]);
    // Another actor's edit does not touch it.
    let other = config(&edited).replace("module = \"relay\"", "module = \"relay\"\nmailbox = 7");
    daemon.world.config(&other);
    daemon.reload();
    assert_eq!(client.post("/new", "4").status, 202);
    assert_eq!(daemon.line().unwrap(), "4");
    assert_eq!(daemon.actor("door")["generation"], 2);
    assert_eq!(address(&daemon, "door"), at);
    // Without the actor, nobody is there.
    daemon.world.config(HEAD);
    daemon.post("/v1/reload?allow_removal=true", "");
    daemon.until("it is gone", |d| d.actor("door").is_null());
    assert!(TcpStream::connect(at).is_err());
    assert!(client.try_read().is_none());
}

#[test]
fn a_port_that_is_taken_is_said_and_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let mut daemon = start(&ORDERS.replace("127.0.0.1:0", &at.to_string()));
    daemon.until("it says so", |d| d.actor("door")["state"] == "failed");
    let why = daemon.actor("door")["why"].as_str().unwrap().to_owned();
    assert!(why.contains(&format!("cannot listen on {at}")) && why.contains("stop what"), "{why}");
    drop(taken);
    daemon.post("/v1/actors/door/retry", "");
    assert_eq!(address(&daemon, "door"), at);
    assert_eq!(Client::new(at).post("/orders", "1").status, 202);
    assert_eq!(daemon.line().unwrap(), "1");
}

#[test]
fn a_stop_answers_who_waits_and_keeps_what_was_taken() {
    let door = r#"config = { listen = "127.0.0.1:0", routes = [{ path = "/orders", port = "orders", wait = "a.out", timeout = "1h" }] }"#;
    let daemon = start(door);
    daemon.post("/v1/actors/a/pause", "");
    daemon.until("a is paused", |d| d.actor("a")["state"] == "paused");
    let mut client = Client::new(address(&daemon, "door"));
    client.write("POST", "/orders", "Content-Type: application/json\r\n", "1");
    daemon.until("it is taken", |d| d.sum("reflowd_messages_queued") == 1.0);
    let waiting = thread::spawn(move || client.read());
    let (status, last, world) = daemon.stop();
    assert!(status.success(), "{last}");
    let reply = waiting.join().unwrap();
    assert_eq!((reply.status, &reply.json()["title"]), (503, &"stopping".into()), "{reply:?}");
    assert!(header(&reply.head, "retry-after").is_some());
    let mut daemon = world.start();
    assert_eq!(daemon.line().unwrap(), "1");
}

#[test]
fn a_door_without_a_token_is_for_this_machine_alone() {
    let world = World::new(&config(&ORDERS.replace("127.0.0.1:0", "0.0.0.0:0")));
    world.module("relay", &guest("relay"));
    let output = world.run(&["check"]);
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("set a `token`"), "{said}");
    // The ports are those of the routes, for `check` as well.
    world.config(&config(ORDERS).replace("door.orders", "door.others"));
    let said = String::from_utf8(world.run(&["check"]).stdout).unwrap();
    assert!(said.contains("its outport is `orders`"), "{said}");
}
