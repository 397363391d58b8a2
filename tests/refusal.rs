//! Bad surroundings: a clear error that says what to do, and the right exit code.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::rig::World;

#[track_caller]
fn refused(world: &World, args: &[&str], code: i32, says: &[&str]) {
    let output = world.run(args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{error}");
    for words in says {
        assert!(error.contains(words), "`{words}` is not in:\n{error}");
    }
}

#[test]
fn without_a_configuration_it_lists_where_it_looked() {
    let world = World::new("");
    fs::remove_file(world.path("config/reflowd.toml")).unwrap();
    refused(&world, &[], 78, &["config/reflowd.toml", "/etc/reflowd/reflowd.toml", "--config"]);
}

#[test]
fn a_missing_modules_folder_is_named() {
    let world = World::new("[daemon]\nmodules = \"../nowhere\"\ndata = \"../data\"\n");
    let daemon = world.start();
    daemon.events(0).find(|event| {
        event["event"] == "folder-unknown" && event["path"].as_str().unwrap().ends_with("nowhere")
    });
}

#[test]
fn check_names_a_modules_folder_in_which_nothing_can_be_found() {
    let config = "[daemon]\nmodules = \"../nowhere\"\ndata = \"../data\"\n";
    let world = World::new(config);
    let check = || {
        let output = world.run(&["check"]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = check();
    assert_eq!(code, Some(0), "a daemon would start, and wait for it: {said}");
    for words in ["W0404", "nowhere`", "config/reflowd.toml:2:11", "make it, or mount"] {
        assert!(said.contains(words), "`{words}` is not in:\n{said}");
    }
    world.config(&format!("{config}[actors.a]\nmodule = \"a\"\n"));
    let (code, said) = check();
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("W0404") && said.contains("E0205"), "{said}");

    // What a daemon would not trust is no good module either.
    world.config("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    world.module("open", &crate::rig::guest("relay"));
    fs::set_permissions(world.path("modules/open.wasm"), fs::Permissions::from_mode(0o666))
        .unwrap();
    let (code, said) = check();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("W0403") && said.contains("anybody may write to"), "{said}");

    // What lies there counts where it becomes an actor, and is told where it cannot.
    world.module("open", &crate::rig::guest("relay"));
    fs::set_permissions(world.path("modules/open.wasm"), fs::Permissions::from_mode(0o644))
        .unwrap();
    world.module("with space", &crate::rig::guest("relay"));
    world.module("taken", &crate::rig::guest("relay"));
    world.config(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n[actors.taken]\nmodule = \"std:log\"\n",
    );
    let (code, said) = check();
    assert_eq!(code, Some(0), "{said}");
    for words in [
        "good: 2 actors (1 for its file alone), 0 wires",
        "with space.wasm` would not become an actor",
        "`taken` is configured to run something else",
    ] {
        assert!(said.contains(words), "`{words}` is not in:\n{said}");
    }
}

#[test]
fn a_secret_that_is_not_there_is_one_error() {
    let world = World::new(concat!(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n",
        "[actors.post]\nmodule = \"std:http-out\"\n",
        "config = { url = \"http://127.0.0.1:1/${TOKEN}\" }\n",
        "env.TOKEN = { file = \"/nowhere/token\" }\n",
    ));
    let output = world.run(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let codes = report["problems"].as_array().unwrap().iter();
    let codes: Vec<_> = codes.map(|found| found["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["E0110"], "{report:#}");
}

#[test]
fn what_only_looks_like_a_module_is_told_once() {
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    fs::create_dir(world.path("modules/folder.wasm")).unwrap();
    std::os::unix::fs::symlink("nothing", world.path("modules/dangling.wasm")).unwrap();
    let pipe = world.path("modules/pipe.wasm");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let odd = [
        ("dangling.wasm", "this is a link to nothing"),
        ("folder.wasm", "this is a folder"),
        ("pipe.wasm", "this is a named pipe"),
    ];
    let output = world.run(&["check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for (name, _) in odd {
        assert!(said.contains("W0405") && said.contains(name), "{said}");
    }

    let daemon = world.start();
    let warned = daemon.reload()["warnings"].to_string();
    daemon.reload();
    // The last thing to be told, after which all has been.
    daemon.world.module("relay", &crate::rig::guest("relay"));
    daemon.wait_event("started", "relay");
    let log = daemon.log_text();
    let events = daemon.get("/v1/events").body;
    for (name, why) in odd {
        for (what, text) in [("log", &log), ("events", &events)] {
            let lines = text.lines().filter(|line| line.contains(name) && line.contains(why));
            assert_eq!(lines.count(), 1, "{name} in the {what}:\n{text}");
        }
        assert!(warned.contains(name), "each reload says it: {warned}");
    }
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named() {
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../file/data\"\n");
    fs::write(world.path("file"), "").unwrap();
    refused(&world, &[], 1, &["file/data"]);
}

#[test]
fn a_folder_that_anybody_may_write_to_is_not_trusted() {
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    fs::set_permissions(world.path("modules"), fs::Permissions::from_mode(0o777)).unwrap();
    world.module("echo", &crate::rig::guest("relay"));
    let daemon = world.start();
    daemon.events(0).find(|event| event["event"] == "folder-unknown");
    assert!(daemon.actor("echo").is_null());
}

#[test]
fn a_configuration_that_anybody_may_write_to_starts_nothing() {
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    let path = world.path("config/reflowd.toml");
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    refused(&world, &[], 78, &["reflowd.toml", "may be written to by anybody", "chmod o-w"]);
}

#[test]
fn without_a_daemon_the_command_line_says_where_it_looked() {
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    refused(&world, &["ps"], 69, &["reflowd.sock", "reflowd run"]);
}

#[test]
fn a_socket_left_behind_is_no_obstacle() {
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    fs::create_dir(world.path("data")).unwrap();
    fs::set_permissions(world.path("data"), fs::Permissions::from_mode(0o700)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(world.socket()).unwrap());
    let daemon = world.start();
    assert_eq!(daemon.get("/readyz").status, 200);
}

#[test]
fn a_socket_in_use_is_refused() {
    let world = World::new(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n[admin]\nsocket = \"../taken.sock\"\n",
    );
    let taken = std::os::unix::net::UnixListener::bind(world.path("taken.sock")).unwrap();
    refused(&world, &[], 1, &["taken.sock"]);
    drop(taken);
}

#[test]
fn an_unknown_flag_is_a_usage_error() {
    refused(&World::new(""), &["--colour"], 2, &["--colour"]);
}
