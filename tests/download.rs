//! Modules from a URL, as an operator sees them.

use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::{
    rig::{Daemon, World, guest},
    server::{Authority, Server, Way},
};

/// The folders of a world, and a bound that a good server meets.
const DAEMON: &str = r#"
    [daemon]
    modules = "../modules"
    data = "../data"
    download_timeout = "60s"
"#;

/// A message as the guest that stamps takes it.
const NUMBERED: &str = r#"{"sender": 0, "seq": 1}"#;

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An actor that runs what is behind the URL, and writes what it puts out.
/// Nobody looks at disk but on demand.
const BLIND: &str = "watch = false\nrescan = \"1h\"";

fn flow(url: &str, sha256: &str, more: &str) -> String {
    format!(
        r#"
        {DAEMON}
        {more}

        [actors.far]
        module = {{ url = "{url}", sha256 = "{sha256}" }}

        [actors.out]
        module = "std:stdout"

        [[wires]]
        from = "far.out"
        to = "out.in"

        [actors.near]
        module = "relay"
        "#
    )
}

fn world(config: &str) -> World {
    let world = World::new(config);
    world.module("relay", &guest("relay"));
    world
}

fn row(daemon: &Daemon, actor: &str) -> String {
    let output = daemon.world.run(&["ps"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let row = text.lines().find(|line| line.starts_with(actor)).map(str::to_owned);
    row.unwrap_or_else(|| panic!("no `{actor}` in:\n{text}"))
}

/// What a command of the product says and how it ends.
fn say(world: &World, args: &[&str]) -> (Option<i32>, String) {
    let output = world.run(args);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Two versions, and a server that has both.
fn two_versions() -> (Server, [String; 2]) {
    let versions = [guest("stamp-a"), guest("stamp-b")];
    let digests = versions.clone().map(|version| sha256(&version));
    let server = Server::start(move |path| match path {
        "/v1/stamp.wasm" => Way::Whole(versions[0].clone()),
        "/v2/stamp.wasm" => Way::Whole(versions[1].clone()),
        _ => Way::Status(404),
    });
    (server, digests)
}

#[test]
fn a_module_from_a_url_is_swapped_by_its_digest_and_outlives_its_server() {
    let (server, [first, second]) = two_versions();
    let v1 = flow(&server.url("/v1/stamp.wasm"), &first, BLIND);
    let v2 = flow(&server.url("/v2/stamp.wasm"), &second, BLIND);
    let mut daemon = world(&v1).start();
    daemon.send("far.in", NUMBERED);
    assert!(daemon.line().unwrap().contains("\"a\""));
    let shown = row(&daemon, "far");
    assert!(shown.contains(" stamp.wasm ") && shown.contains("same"), "{shown}");
    assert_eq!(daemon.actor("far")["module"], server.url("/v1/stamp.wasm"));

    daemon.world.config(&v2);
    let (code, said) = say(&daemon.world, &["reload"]);
    assert_eq!((code, said.as_str()), (Some(0), "~ far\n"));
    daemon.send("far.in", NUMBERED);
    assert!(daemon.line().unwrap().contains("\"b\""));
    let actor = daemon.actor("far");
    assert_eq!(actor["generation"], 2);
    assert_eq!(actor["on_trial"], true, "{actor}");
    assert_eq!(server.requests(), 2);

    // Going back, and starting again, ask nobody.
    drop(server);
    let (code, said) = say(&daemon.world, &["rollback", "far"]);
    assert_eq!(code, Some(0), "{said}");
    daemon.send("far.in", NUMBERED);
    assert!(daemon.line().unwrap().contains("\"a\""));
    let (_, _, world) = daemon.stop();
    assert_eq!(say(&world, &["check"]).0, Some(0));
    let daemon = world.start();
    assert_eq!(daemon.actor("far")["digest"], first);
    let (code, said) = say(&daemon.world, &["reload", "--force"]);
    assert_eq!((code, said.as_str()), (Some(0), "~ far\n"));
    assert_eq!(daemon.actor("far")["digest"], second);
}

#[test]
fn a_module_is_downloaded_once_for_all_actors() {
    let (server, [first, _]) = two_versions();
    let url = server.url("/v1/stamp.wasm");
    let actor = |name: &str| {
        format!("[actors.{name}]\nmodule = {{ url = \"{url}\", sha256 = \"{first}\" }}\n")
    };
    let daemon = world(&(DAEMON.to_owned() + &actor("a") + &actor("b"))).start();
    daemon.world.config(&(DAEMON.to_owned() + &actor("a") + &actor("b") + &actor("c")));
    assert_eq!(say(&daemon.world, &["reload"]), (Some(0), "+ c\n".into()));
    for name in ["a", "b", "c"] {
        assert_eq!(daemon.actor(name)["digest"], first, "{name}");
    }
    assert_eq!(server.requests(), 1);
    let modules = daemon.get("/v1/modules").json();
    let listed = modules.as_array().unwrap().iter().find(|m| m["file"] == url.as_str()).unwrap();
    assert_eq!(listed["state"], "running", "{listed}");
    assert_eq!(listed["actors"].as_array().unwrap().len(), 3, "{listed}");
}

#[test]
fn a_server_that_stalls_holds_up_nobody_else() {
    let server = Server::start(|_| Way::Silence);
    let config = flow(&server.url("/stamp.wasm"), &sha256(&guest("stamp-a")), "");
    let begun = Instant::now();
    let daemon = world(&config).start();
    assert!(begun.elapsed() < Duration::from_secs(40), "the start does not wait for it");
    daemon.until("it is asked for", |_| server.requests() > 0);
    let waiting = daemon.actor("far");
    assert_eq!(waiting["state"], "loading", "{waiting}");
    assert!(waiting["why"].as_str().unwrap().contains("still to come"), "{waiting}");
    assert!(row(&daemon, "far").contains("differs"));

    // The others start, take messages and take up other versions meanwhile.
    daemon.send("near.in", "1");
    daemon.world.module("relay", &guest("stamp-b"));
    daemon.until("the other is swapped", |daemon| daemon.actor("near")["generation"] == 2);
    daemon.world.config(&format!("{config}\n[actors.third]\nmodule = \"relay\"\n"));
    daemon.until("another starts", |daemon| daemon.actor("third")["state"] == "active");
    assert_eq!(server.requests(), 1, "all of that while it is asked once");
    let (code, said) = say(&daemon.world, &["reload"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("! far: its module is still to come from http://127.0.0.1:"), "{said}");
}

#[test]
fn what_a_server_does_wrong_is_told_and_tried_again() {
    let good = guest("stamp-a");
    let cases = [
        (Way::Status(404), "the server answers 404"),
        (Way::Whole(guest("stamp-b")), "and `sha256` is"),
        (Way::Endless, "more than the 1000000 bytes"),
        (Way::EndlessChunks, "more than the 1000000 bytes"),
        (Way::TooShort(good.clone()), "broke off"),
        (Way::Gzip(good.clone()), "encoded as gzip"),
        (Way::Redirect("https://example.com/x.wasm".into()), "redirects to https://example.com"),
        (Way::Redirect("http://localhost:1/x.wasm".into()), "redirects to http://localhost:1/"),
    ];
    for (way, words) in cases {
        let (asked, body) = (std::sync::atomic::AtomicUsize::new(0), good.clone());
        let shown = format!("{way:?}").chars().take(40).collect::<String>();
        let server = Server::start(move |_| {
            // The second time it has come to its senses.
            match asked.fetch_add(1, std::sync::atomic::Ordering::AcqRel) {
                0 => way.clone(),
                _ => Way::Whole(body.clone()),
            }
        });
        let url = server.url("/stamp.wasm");
        let config = flow(&url, &sha256(&good), "module_size = 1_000_000");
        let mut daemon = world(&config).start();
        let mut events = daemon.events(0);
        let refused = events.find(|event| event["event"] == "change-refused");
        let why = refused["why"].as_str().unwrap().to_owned();
        assert!(why.contains(words) && why.contains(&url), "{shown}: {why}");
        daemon.until("it is tried again", |daemon| daemon.actor("far")["state"] == "active");
        daemon.send("far.in", NUMBERED);
        assert!(daemon.line().unwrap().contains("\"a\""), "{shown}");
        assert_eq!(daemon.sum("reflowd_modules_refused_total"), 0.0, "{shown}: it is no verdict");
        assert_eq!(server.requests(), 2, "{shown}");
    }
}

#[test]
fn a_server_that_never_ends_its_answer_is_given_up_and_asked_again() {
    let good = guest("stamp-a");
    let ways = [Way::Silence, Way::Stall(good.clone()), Way::Trickle];
    let count = ways.len();
    let (asked, body) = (std::sync::atomic::AtomicUsize::new(0), good.clone());
    let server = Server::start(move |_| {
        let nth = asked.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        ways.get(nth).cloned().unwrap_or(Way::Whole(body.clone()))
    });
    let config = flow(&server.url("/stamp.wasm"), &sha256(&good), "");
    let daemon = world(&config.replace("\"60s\"", "\"300ms\"")).start();
    let mut events = daemon.events(0);
    let refused = events.find(|event| event["event"] == "change-refused");
    assert!(refused["why"].as_str().unwrap().contains("more than 300ms"), "{refused}");
    // A reload does not wait for the pauses between the attempts.
    daemon.until("it has come", |daemon| {
        daemon.reload();
        daemon.actor("far")["state"] == "active"
    });
    assert_eq!(server.requests(), count + 1);
}

#[test]
fn a_new_version_that_cannot_be_had_leaves_the_old_one_running() {
    let (server, [first, second]) = two_versions();
    let mut daemon = world(&flow(&server.url("/v1/stamp.wasm"), &first, BLIND)).start();
    daemon.world.config(&flow(&server.url("/v3/stamp.wasm"), &second, BLIND));
    let (code, said) = say(&daemon.world, &["reload"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("! far: its module is not here: ") && said.contains("404"), "{said}");
    let shown = row(&daemon, "far");
    assert!(shown.contains("active") && shown.contains("differs"), "{shown}");
    daemon.send("far.in", NUMBERED);
    assert!(daemon.line().unwrap().contains("\"a\""));
    daemon.world.config(&flow(&server.url("/v2/stamp.wasm"), &second, BLIND));
    assert_eq!(say(&daemon.world, &["reload"]), (Some(0), "~ far\n".into()));

    // While the daemon is down the digest changes and the server goes: what passed last runs.
    let (_, _, world) = daemon.stop();
    drop(server);
    world.config(&flow("http://127.0.0.1:1/stamp.wasm", &sha256(b"other"), ""));
    let daemon = world.start();
    assert_eq!(daemon.actor("far")["digest"], first);
    assert!(row(&daemon, "far").contains("differs"));
}

#[test]
fn a_dry_run_downloads_nothing() {
    let (server, [first, _]) = two_versions();
    let near = "[actors.near]\nmodule = \"relay\"";
    let daemon = world(&format!("{DAEMON}\n{BLIND}\n{near}\n")).start();
    daemon.reload();
    daemon.world.config(&flow(&server.url("/v1/stamp.wasm"), &first, BLIND));
    let (code, said) = say(&daemon.world, &["reload", "--dry-run"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("`far`: its module is still to come from"), "{said}");
    daemon.reload();
    assert_eq!(daemon.actor("far")["state"], "active");
    assert_eq!(server.requests(), 1);
}

#[test]
fn https_needs_somebody_who_vouches_for_the_server() {
    let authority = Authority::new();
    let body = guest("stamp-a");
    let server = Server::start_tls(&authority, move |_| Way::Whole(body.clone()));
    let digest = sha256(&guest("stamp-a"));
    let url = server.url("/stamp.wasm");
    let listed = "download_hosts = [\"localhost\"]";
    let trusted = format!("{listed}\nauthorities = \"ca.pem\"");
    let world = world(&flow(&url, &digest, &trusted));
    world.put("config/ca.pem", authority.pem.as_bytes());
    for (more, words) in [("", "not public"), (listed, "certificate is not trusted")] {
        world.config(&flow(&url, &digest, more));
        let (code, said) = say(&world, &["check"]);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("E0208") && said.contains(words), "{said}");
    }
    assert_eq!(server.requests(), 0);
    world.config(&flow(&url, &digest, &trusted));
    assert_eq!(say(&world, &["check"]).0, Some(0));
    let daemon = world.start();
    assert_eq!(daemon.actor("far")["digest"], digest);
    let more = format!("{trusted}\ndownload_timeout = \"5s\"");
    daemon.world.config(&flow(&url, &digest, &more).replacen("download_timeout = \"60s\"", "", 1));
    let (code, said) = say(&daemon.world, &["reload"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`daemon.download_timeout` needs a restart"), "{said}");
}

#[test]
fn inspect_tells_what_is_behind_a_url() {
    let (server, [first, second]) = two_versions();
    let world = world("");
    let url = server.url("/v1/stamp.wasm");
    let (code, said) = say(&world, &["inspect", &url]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("digest     {first}")) && said.contains(&url), "{said}");
    assert_eq!(say(&world, &["inspect", &url, "--sha256", &first]).0, Some(0));
    let (code, said) = say(&world, &["inspect", &url, "--sha256", &second]);
    assert_eq!(code, Some(65), "{said}");
    let (code, said) = say(&world, &["inspect", "modules/relay.wasm", "--sha256", &second]);
    assert_eq!(code, Some(65), "{said}");
    let (code, said) = say(&world, &["inspect", &server.url("/none.wasm")]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("404"), "{said}");
    let (code, said) = say(&world, &["inspect", "http://example.com/x.wasm"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("write https://"), "{said}");
}
