//! The daemon as a service manager sees it, by a manager that only listens.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    rig::{Daemon, PATIENCE, REFLOWD, World, guest, read_response, repository, request_at},
    rollouts::endless,
};

/// What the manager wants to hear of, at least.
const WATCHDOG: Duration = Duration::from_millis(400);

/// A service manager's end of the notify socket.
struct Manager {
    heard: mpsc::Receiver<(Instant, String)>,
}

impl Manager {
    /// Listens, and starts the daemon as one of its services.
    fn start(world: World) -> (Self, Daemon) {
        let socket = UnixDatagram::bind(world.path("notify")).unwrap();
        let mut command = world.command(&[]);
        command.env("NOTIFY_SOCKET", world.path("notify"));
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        let (sender, heard) = mpsc::sync_channel(1 << 16);
        thread::spawn(move || {
            let mut datagram = [0; 4096];
            while let Ok(length) = socket.recv(&mut datagram) {
                let text = String::from_utf8(datagram[..length].to_vec()).unwrap();
                if sender.send((Instant::now(), text)).is_err() {
                    return;
                }
            }
        });
        (Self { heard }, world.start_as(command))
    }

    /// All that is heard up to the first datagram that has `part`.
    fn until(&self, part: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let (_, text) = self.heard.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                panic!("the manager never hears {part}, only {heard:#?}");
            });
            let last = text.contains(part);
            heard.push(text);
            if last {
                return heard;
            }
        }
    }

    /// Waits until no ping has come for that long.
    fn silence(&self, long: Duration) {
        let (began, mut last) = (Instant::now(), Instant::now());
        while last.elapsed() < long {
            assert!(began.elapsed() < PATIENCE, "it never ceases to ping");
            if let Ok((at, text)) = self.heard.recv_timeout(long / 10)
                && text.contains("WATCHDOG=1")
            {
                last = at;
            }
        }
    }
}

fn world(more: &str) -> World {
    World::new(&format!(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nautostart = false\ndrain = \"3s\"\n{more}"
    ))
}

#[test]
fn the_service_manager_hears_of_each_step() {
    let world = world("[actors.relay]\nmodule = \"relay\"\n");
    world.module("relay", &guest("relay"));
    let (manager, daemon) = Manager::start(world);
    let mut heard = manager.until("READY=1");
    assert!(heard[0].contains("STATUS=starting") && heard[0].contains("EXTEND_TIMEOUT_USEC="));
    assert!(heard.last().unwrap().contains("STATUS=1 actors, 0 failed, config in sync"));
    for _ in 0..3 {
        heard.extend(manager.until("WATCHDOG=1"));
    }
    daemon.signal("-HUP");
    heard.extend(manager.until("RELOADING=1"));
    assert!(heard.last().unwrap().contains("MONOTONIC_USEC="));
    heard.extend(manager.until("READY=1"));
    daemon.signal("-TERM");
    heard.extend(manager.until("STOPPING=1"));
    // The drain, and the last words of actors, dead letters, tasks, threads and the log.
    assert!(heard.last().unwrap().contains("EXTEND_TIMEOUT_USEC=13000000\n"), "{heard:#?}");
    let (status, ..) = daemon.ended();
    println!("{}", heard.concat());
    assert!(status.success());
}

#[test]
fn a_reload_that_takes_long_asks_the_service_manager_for_more_time() {
    let world = world("[actors.relay]\nmodule = \"relay\"\n");
    world.module("relay", &guest("relay"));
    let (manager, daemon) = Manager::start(world);
    manager.until("READY=1");
    // Nobody's reload: the pings and the status ask for nothing.
    let asks = |heard: &[String]| heard.iter().any(|text| text.contains("EXTEND_TIMEOUT_USEC="));
    assert!(!asks(&manager.until("STATUS=")));
    let socket = daemon.world.socket();
    for (seed, by_signal) in [(1, false), (2, true)] {
        // A reload waits for a module that never says what it is, until that is given up.
        daemon.world.module("relay", &endless("loop-in-metadata.wat", seed));
        let asker = match by_signal {
            true => {
                daemon.signal("-HUP");
                manager.until("RELOADING=1");
                None
            }
            false => {
                let socket = socket.clone();
                Some(thread::spawn(move || {
                    request_at(&socket, "POST", "/v1/reload", "application/json", b"")
                }))
            }
        };
        manager.until("EXTEND_TIMEOUT_USEC=30000000");
        match asker {
            Some(asker) => _ = asker.join().unwrap(),
            None => _ = manager.until("READY=1"),
        }
    }
    let (status, ..) = daemon.stop();
    assert!(status.success());
}

#[test]
fn a_daemon_whose_actors_are_stuck_does_not_feed_the_watchdog() {
    // The stock engine cannot be preempted: a guest that has been quick keeps the thread. Some
    // may have had a slow turn on a busy machine, so there are more of them than threads.
    let names: Vec<_> = (0..4 * thread::available_parallelism().unwrap().get())
        .map(|n| format!("sudden{n}"))
        .collect();
    let actors = names
        .iter()
        .map(|name| format!("[actors.{name}]\nmodule = \"sudden\"\ntimeout = \"3s\"\n"));
    let world = world(&format!("engine = \"extism\"\n{}", actors.collect::<String>()));
    let sudden = fs::read(repository().join("tests/guests/sudden.wat")).unwrap();
    world.module("sudden", &wat::parse_bytes(&sudden).unwrap());
    let (manager, daemon) = Manager::start(world);
    let send = |name: &String, count: usize| {
        let path = format!("/v1/actors/{name}/ports/in");
        let lines = "{\"type\":\"Integer\",\"data\":1}\n".repeat(count);
        let sent = daemon.request("POST", &path, "application/x-ndjson", lines.as_bytes());
        assert_eq!(sent.json()["accepted"], count, "{sent:?}");
    };
    names.iter().for_each(|name| send(name, 200));
    daemon.until("all have been quick", |daemon| {
        daemon.sum("reflowd_messages_completed_total") == 200.0 * names.len() as f64
    });
    manager.until("WATCHDOG=1");
    names.iter().for_each(|name| send(name, 1));
    manager.silence(WATCHDOG * 3);
    daemon.until("it says so", |d| d.log_text().contains("no progress"));
    // The turns end by their time limit, and that is progress.
    manager.until("WATCHDOG=1");
}

#[test]
fn under_the_journal_the_log_goes_there_as_fields() {
    let world = world("[actors.relay]\nmodule = \"relay\"\n");
    world.module("relay", &guest("relay"));
    // A namespace in which `/run` is empty, so that the journal of this machine is not met;
    // the daemon waits for its socket, which this test binds from outside.
    let script = r#"
        mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && echo in >&3 &&
        while [ ! -S /run/systemd/journal/socket ]; do :; done
        export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2)
        exec "$0" "$@""#;
    let unshared = |command: &mut Command| {
        command.args(["--mount", "--map-root-user", "sh", "-c"]).current_dir(world.path(""));
        command.stdin(Stdio::null()).env("REFLOWD_LOG", "info");
        command.stderr(fs::File::create(world.path("stderr")).unwrap());
    };
    let mut probe = Command::new("unshare");
    unshared(&mut probe);
    if !probe.args(["mount -t tmpfs tmpfs /run"]).status().is_ok_and(|status| status.success()) {
        println!("SKIPPED: no mount namespaces here");
        return;
    }
    let mut command = Command::new("unshare");
    unshared(&mut command);
    let script = script.replace("echo in >&3", "echo in");
    let mut child = command.args([&script, REFLOWD]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "in");
    let inside = format!("/proc/{}/root/run/systemd/journal/socket", child.id());
    let journal = UnixDatagram::bind(inside).unwrap();
    journal.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut datagram = vec![0; 65536];
    let entry = loop {
        let length = journal.recv(&mut datagram).unwrap();
        let entry = fields(&datagram[..length]);
        // The first datagram only asks whether somebody listens.
        if entry.get("MESSAGE").is_some_and(|message| message.starts_with("actor started")) {
            break entry;
        }
    };
    for (name, value) in [
        ("PRIORITY", "5"),
        ("SYSLOG_IDENTIFIER", "reflowd"),
        ("REFLOWD_ACTOR", "relay"),
        ("REFLOWD_MODULE", "relay"),
        ("REFLOWD_GENERATION", "1"),
    ] {
        assert_eq!(entry[name], value, "{entry:?}");
    }
    // It is all that `journalctl` shows.
    let digest = &entry["REFLOWD_DIGEST"];
    let message = format!("actor started actor=relay module=relay generation=1 digest={digest}");
    assert_eq!(entry["MESSAGE"], message);
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    assert_eq!(fs::read_to_string(world.path("stderr")).unwrap(), "");
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(child.wait().unwrap().success());
}

/// Starts the daemon with a socket that somebody else holds, as systemd passes it on.
fn start_with(world: World, held: &UnixListener) -> Daemon {
    let mut command = Command::new("sh");
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\"";
    command.args(["-c", script, REFLOWD]).current_dir(world.path(""));
    command.stdin(OwnedFd::from(held.try_clone().unwrap()));
    world.start_as(command)
}

#[test]
fn a_restart_of_a_daemon_whose_socket_is_held_refuses_nobody() {
    let world = world("[actors.relay]\nmodule = \"relay\"\n");
    world.module("relay", &guest("relay"));
    fs::create_dir(world.path("data")).unwrap();
    let held = UnixListener::bind(world.socket()).unwrap();
    let daemon = start_with(world, &held);
    daemon.send("relay.in", "1");
    let (status, last, world) = daemon.stop();
    assert!(status.success(), "{last}");
    // Nobody serves, and who comes waits.
    let mut waiting = UnixStream::connect(world.socket()).unwrap();
    let request = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    waiting.write_all(request.as_bytes()).unwrap();
    let daemon = start_with(world, &held);
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read_response(&mut BufReader::new(waiting)).body, "alive\n");
    daemon.send("relay.in", "2");
    let (status, last, world) = daemon.stop();
    assert!(status.success(), "{last}");
    assert!(world.socket().exists(), "the file belongs to who holds the socket");
}

#[test]
fn a_daemon_whose_socket_is_held_by_somebody_else_has_its_own_besides() {
    let world = world("[actors.relay]\nmodule = \"relay\"\n");
    world.module("relay", &guest("relay"));
    let held = UnixListener::bind(world.path("held")).unwrap();
    let daemon = start_with(world, &held);
    // `ExecReload=` runs as the daemon's user, for whom root's socket is closed.
    let config = fs::read_to_string(daemon.world.path("config/reflowd.toml")).unwrap();
    for (socket, actor) in [(&[][..], "a"), (&["--socket", "held"], "b")] {
        let more = format!("{config}[actors.{actor}]\nmodule = \"relay\"\n");
        daemon.world.config(&more);
        let output = daemon.world.run(&[&["reload"], socket].concat());
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success() && said.contains(&format!("+ {actor}\n")), "{said}");
    }
    daemon.world.config(&format!("{config}[actors.c]\nmodule = 7\n"));
    assert_eq!(daemon.world.run(&["reload"]).status.code(), Some(1), "and the result is true");
    daemon.world.config(&config);
    let (status, last, world) = daemon.stop();
    assert!(status.success(), "{last}");
    assert!(!world.socket().exists(), "the daemon's own goes with it");
    assert!(world.path("held").exists(), "the file belongs to who holds the socket");
}

/// The fields of a journal entry: `NAME=value`, or the name, eight bytes of length and the value.
fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut found = BTreeMap::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&entry[..end], &entry[end + 1..]);
        if let Some(at) = line.iter().position(|byte| *byte == b'=') {
            found.insert(text(&line[..at]), text(&line[at + 1..]));
            entry = rest;
        } else {
            let (length, rest) = rest.split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap());
            let (value, rest) = rest.split_at(usize::try_from(length).unwrap());
            found.insert(text(line), text(value));
            entry = &rest[1..];
        }
    }
    found
}
