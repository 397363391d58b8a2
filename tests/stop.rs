//! How the daemon ends.

use std::{
    io::{BufRead as _, BufReader, Lines},
    process::{ChildStdout, Stdio},
    thread,
    time::Instant,
};

use crate::rig::{PATIENCE, REFLOWD, World, guest, request_at};

fn paused_relay(drain: &str) -> crate::rig::Daemon {
    let world = World::new(&format!(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        drain = "{drain}"
        [actors.a]
        module = "relay"
        [actors.b]
        module = "relay"
        [actors.screen]
        module = "std:stdout"
        [[wires]]
        from = "a.out"
        to = "b.in"
        [[wires]]
        from = "b.out"
        to = "screen.in"
        "#
    ));
    world.module("relay", &guest("relay"));
    world.start()
}

fn fill(daemon: &crate::rig::Daemon, count: usize) {
    let lines: String =
        (0..count).map(|n| format!("{{\"type\":\"Integer\",\"data\":{n}}}\n")).collect();
    let path = "/v1/actors/a/ports/in";
    let response = daemon.request("POST", path, "application/x-ndjson", lines.as_bytes());
    assert_eq!(response.json()["accepted"], count, "{response:?}");
}

#[test]
fn a_stop_drains_what_is_queued() {
    let mut daemon = paused_relay("30s");
    daemon.post("/v1/actors/a/pause", "");
    daemon.until("a is paused", |d| d.actor("a")["state"] == "paused");
    fill(&daemon, 1000);
    daemon.post("/v1/actors/a/resume", "");
    daemon.signal("-TERM");
    for n in 0..1000 {
        assert_eq!(daemon.line().unwrap(), n.to_string());
    }
    let (status, last, _) = daemon.ended();
    println!("exit status {status}, last line: {last}");
    assert!(status.success(), "{last}");
    assert!(last.contains("nothing is left"), "{last}");
}

#[test]
fn a_stop_that_cannot_drain_says_what_it_saved() {
    let daemon = paused_relay("100ms");
    daemon.post("/v1/actors/a/pause", "");
    daemon.until("a is paused", |d| d.actor("a")["state"] == "paused");
    fill(&daemon, 7);
    daemon.signal("-TERM");
    let (status, last, _) = daemon.ended();
    assert!(status.success(), "{last}");
    assert!(last.contains("saved for the next start") && last.contains("\"saved\":7"), "{last}");
}

#[test]
fn state_outlives_a_stop() {
    let repository = crate::rig::repository();
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    let module = std::fs::read(repository.join("modules/region-count.wasm")).unwrap();
    world.module("count", &module);
    let daemon = world.start();
    let quake = r#"{"mag":5.0,"place":"somewhere, Chile"}"#;
    let ask = |daemon: &crate::rig::Daemon| {
        let path = "/v1/actors/count/ports/quake?type=Object&wait=counts&timeout=60s";
        let answer = daemon.post(path, quake);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"]["count"].as_u64().unwrap()
    };
    assert_eq!(ask(&daemon), 1);
    assert_eq!(ask(&daemon), 2);
    let (status, last, world) = daemon.stop();
    assert!(status.success(), "{last}");
    let daemon = world.start();
    assert_eq!(ask(&daemon), 3);
}

#[test]
fn a_second_signal_stops_at_once_and_saves_what_is_left() {
    // A guest that computes for ever moves, so the first signal waits for it.
    let world = World::new(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        autostart = false
        drain = "1h"
        [actors.work]
        module = "work"
        timeout = "1h"
        "#,
    );
    world.module("work", &crate::rig::shaky("v1", "hangs"));
    let daemon = world.start();
    for seq in [9, 10, 11] {
        daemon.send("work.in", &format!("{{\"sender\":0,\"seq\":{seq}}}"));
    }
    daemon.until("it computes", |d| d.sum("reflowd_messages_in_flight") == 1.0);
    daemon.signal("-TERM");
    daemon.until("it drains", |d| d.get("/readyz").status == 503);
    daemon.signal("-TERM");
    let (status, last, world) = daemon.ended();
    assert!(status.success(), "{last}");
    assert!(last.contains("\"saved\":3"), "{last}");
    world.module("work", &crate::rig::shaky("v2", "steady"));
    let daemon = world.start();
    daemon.until("all are done", |d| d.sum("reflowd_messages_completed_total") == 3.0);
}

#[test]
fn a_second_daemon_on_the_same_data_folder_is_refused() {
    let daemon = paused_relay("1s");
    let second = std::process::Command::new(REFLOWD)
        .current_dir(daemon.world.path(""))
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success());
    assert!(error.contains("data") && error.contains(&daemon.pid().to_string()), "{error}");
    daemon.send("a.in", "1");
}

/// Where a number is sent to the relay.
const SEND: &str = "/v1/actors/a/ports/in?type=Integer";

/// The daemon in a terminal of its own, which closes when this drops. Its log is the file `log`.
struct Terminal {
    script: std::process::Child,
    daemon: u32,
    /// Whoever reads what the terminal shows; without one, it would close.
    _shown: Lines<BufReader<ChildStdout>>,
}

impl Terminal {
    /// Starts the daemon by a shell that first does `before`; nothing, where there is no
    /// program that makes terminals.
    fn start(world: &World, before: &str) -> Option<Self> {
        let command = format!("{before} echo $$ >pid; exec '{REFLOWD}' 2>log");
        let script = std::process::Command::new("script")
            .args(["--quiet", "--command", &command, "/dev/null"])
            .current_dir(world.path(""))
            .env_clear()
            .env("SHELL", "/bin/sh")
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut script) = script else {
            println!("SKIPPED: there is no `script` to make a terminal");
            return None;
        };
        let mut shown = BufReader::new(script.stdout.take().unwrap()).lines();
        let ready = shown.find(|line| line.as_ref().is_ok_and(|line| line.trim() == "ready"));
        assert!(ready.is_some(), "{}", std::fs::read_to_string(world.path("log")).unwrap());
        let daemon = std::fs::read_to_string(world.path("pid")).unwrap().trim().parse().unwrap();
        Some(Self { script, daemon, _shown: shown })
    }

    fn close(&mut self) {
        self.script.kill().unwrap();
        self.script.wait().unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        _ = self.script.kill();
        _ = self.script.wait();
        if thread::panicking() {
            send_signal("-KILL", self.daemon);
        }
    }
}

/// Waits for something outside of the daemon.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        crate::rig::pause();
    }
}

fn lone_relay() -> World {
    let world = World::new(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nautostart = false\n\
         [actors.a]\nmodule = \"relay\"\n",
    );
    world.module("relay", &guest("relay"));
    world
}

fn send_signal(signal: &str, pid: u32) {
    let sent = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.unwrap().success() || thread::panicking(), "{signal} {pid}");
}

#[test]
fn a_daemon_whose_terminal_is_closed_drains_and_ends_and_the_next_one_starts() {
    let world = lone_relay();
    let Some(mut terminal) = Terminal::start(&world, "") else { return };
    let pid = terminal.daemon;
    let log = || std::fs::read_to_string(world.path("log")).unwrap();
    // While the terminal is there, the same signal asks for a look at disk.
    send_signal("-HUP", pid);
    until("it reloads", || log().contains("SIGHUP: looking at disk"));
    let sent = request_at(&world.socket(), "POST", SEND, "application/json", b"1");
    assert_eq!(sent.status, 202, "{sent:?}");
    terminal.close();
    until("it stops", || log().contains("nothing is left"));
    assert!(log().contains("\"signal\":\"SIGHUP\""), "{}", log());
    until("it has ended", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    let daemon = world.start();
    daemon.send("a.in", "1");
}

#[test]
fn a_daemon_that_was_started_by_nohup_outlives_its_terminal() {
    let world = lone_relay();
    let Some(mut terminal) = Terminal::start(&world, "trap '' HUP;") else { return };
    let pid = terminal.daemon;
    terminal.close();
    let stat = format!("/proc/{pid}/stat");
    let terminal_of = || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        fields.split_whitespace().nth(4).unwrap().to_owned()
    };
    until("its terminal is gone", || terminal_of() == "0");
    send_signal("-HUP", pid);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 1, 1, "it was to be ignored");
    let sent = request_at(&world.socket(), "POST", SEND, "application/json", b"1");
    assert_eq!(sent.status, 202, "{sent:?}");
    send_signal("-TERM", pid);
    let log = || std::fs::read_to_string(world.path("log")).unwrap();
    until("it stops", || log().contains("nothing is left"));
    assert!(!log().contains("SIGHUP"), "{}", log());
    until("it has ended", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn an_interrupt_that_was_ignored_stays_so() {
    // As a shell without job control starts what goes into the background.
    let world = lone_relay();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' INT; exec \"$0\"", REFLOWD]).current_dir(world.path(""));
    command.env_clear().stdin(Stdio::null());
    let daemon = world.start_as(command);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 0b11, 0b10, "SIGINT, and not SIGHUP");
}
