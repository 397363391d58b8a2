//! Bad surroundings: a clear error that says what to do, and the right exit code.

use std::{fs, os::unix::fs::PermissionsExt};

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
