//! Files that are read, and what happens to them meanwhile.

use std::{fs, io::Write as _};

use super::{HEAD, inside::lines};
use crate::rig::{Daemon, World};

/// A file that is followed into another.
fn followed(more: &str) -> String {
    format!(
        r#"{HEAD}
        [actors.lines]
        module = "std:file-in"
        config = {{ path = "../in.log", mode = "follow"{more} }}
        [actors.file]
        module = "std:file-out"
        config = {{ path = "../out" }}
        [[wires]]
        from = "lines.out"
        to = "file.in"
        "#
    )
}

fn append(world: &World, name: &str, text: &str) {
    let path = world.path(name);
    let mut file = fs::File::options().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn wait_for(daemon: &Daemon, expected: &[u64]) {
    let numbers =
        |d: &Daemon| lines(&d.world).iter().map(|line| line.as_u64().unwrap()).collect::<Vec<_>>();
    daemon.until("the lines have come", |d| numbers(d).len() >= expected.len());
    assert_eq!(numbers(daemon), expected);
}

#[test]
fn a_followed_file_goes_on_through_edits_stops_and_rotations() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    // An edit of the source begins no file anew.
    daemon.world.config(&followed(", rate = 5000"));
    daemon.reload();
    assert_eq!(daemon.actor("lines")["generation"], 2);
    append(&daemon.world, "in.log", "3\n");
    wait_for(&daemon, &[1, 2, 3]);
    // Rotated while it is read; whoever writes has not noticed yet.
    fs::rename(daemon.world.path("in.log"), daemon.world.path("in.log.1")).unwrap();
    append(&daemon.world, "in.log", "5\n");
    append(&daemon.world, "in.log.1", "4\n");
    wait_for(&daemon, &[1, 2, 3, 4, 5]);
    // Copied and cut.
    fs::write(daemon.world.path("in.log"), "").unwrap();
    daemon.until("it has seen that", |d| d.log_text().contains("followed file was cut, and"));
    append(&daemon.world, "in.log", "6\n");
    wait_for(&daemon, &[1, 2, 3, 4, 5, 6]);
    // Rotated while nobody reads: what is left in the old file comes first.
    let (_, _, world) = daemon.stop();
    append(&world, "in.log", "7\n");
    fs::rename(world.path("in.log"), world.path("in.log.1")).unwrap();
    append(&world, "in.log", "8\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_renamed_source_goes_on_where_it_was() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    let renamed = followed("").replace("[actors.lines]", "[actors.rows]\nwas = \"lines\"");
    daemon.world.config(&renamed.replace("lines.out", "rows.out"));
    assert_eq!(daemon.reload()["added"], serde_json::json!(["rows"]));
    append(&daemon.world, "in.log", "3\n");
    wait_for(&daemon, &[1, 2, 3]);
}

#[test]
fn a_source_that_was_removed_goes_on_where_it_was_after_a_stop() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    let config = followed("");
    let (head, rest) = config.split_once("[actors.lines]").unwrap();
    let (_, sink) = rest.split_once("[actors.file]").unwrap();
    let (sink, _) = sink.split_once("[[wires]]").unwrap();
    daemon.world.config(&format!("{head}[actors.file]{sink}"));
    assert_eq!(daemon.reload()["removed"], serde_json::json!(["lines"]));
    daemon.wait_event("stopped", "lines");
    let (_, _, world) = daemon.stop();
    append(&world, "in.log", "3\n");
    world.config(&config);
    wait_for(&world.start(), &[1, 2, 3]);
}

#[test]
fn a_last_line_without_an_end_is_not_read_twice_when_it_has_one() {
    let once = |more: &str| followed(more).replace("\"follow\"", "\"once\"");
    let world = World::new(&once(""));
    append(&world, "in.log", "1\n2\n3");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
    append(&daemon.world, "in.log", "\n4\n");
    daemon.world.config(&once(", rate = 5000"));
    daemon.reload();
    wait_for(&daemon, &[1, 2, 3, 4]);
}

#[test]
fn a_killed_daemon_goes_on_in_a_file_from_where_it_was_written_last() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    let written = |d: &Daemon| fs::read_to_string(d.world.path("data/state/lines.json"));
    daemon.until("how far it has come is on disk", |d| {
        written(d).is_ok_and(|text| text.contains(r#""at":4,"count":2"#))
    });
    daemon.signal("-KILL");
    let (_, _, world) = daemon.ended();
    append(&world, "in.log", "3\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
}

#[test]
fn an_operator_says_where_in_a_file_it_goes_on() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n3\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
    let state = |args: &[&str]| {
        let output = daemon.world.run(&[&["state"], args].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let end = state(&["get", "lines"]);
    assert!(end.contains(r#""at":6,"count":3"#), "{end}");
    state(&["set", "lines", &end.replace(r#""at":6,"count":3"#, r#""at":4,"count":2"#)]);
    wait_for(&daemon, &[1, 2, 3, 3]);
    state(&["reset", "lines"]);
    wait_for(&daemon, &[1, 2, 3, 3, 1, 2, 3]);
}

#[test]
fn what_was_rotated_twice_is_read_in_order() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n");
    let daemon = world.start();
    wait_for(&daemon, &[1]);
    let rotate = |world: &World, line: &str, next: &str| {
        append(world, "in.log", line);
        _ = fs::rename(world.path("in.log.1"), world.path("in.log.2"));
        fs::rename(world.path("in.log"), world.path("in.log.1")).unwrap();
        append(world, "in.log", next);
    };
    // Both within the second in which the first one might still be written to.
    rotate(&daemon.world, "2\n", "3\n");
    rotate(&daemon.world, "4\n", "5\n");
    append(&daemon.world, "in.log.err", "\"another log\"\n");
    wait_for(&daemon, &[1, 2, 3, 4, 5]);
    // Both while nobody reads.
    let (_, _, world) = daemon.stop();
    for name in ["in.log.1", "in.log.2"] {
        fs::remove_file(world.path(name)).unwrap();
    }
    rotate(&world, "6\n", "7\n");
    rotate(&world, "8\n", "9\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn a_file_that_was_cut_or_replaced_is_read_from_its_beginning_after_a_stop() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n3\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
    // The cut is seen, and what comes after it is not.
    fs::write(daemon.world.path("in.log"), "").unwrap();
    daemon.until("it has seen that", |d| d.log_text().contains("followed file was cut, and"));
    let (_, _, world) = daemon.stop();
    // The lines before it ended where one of these does.
    append(&world, "in.log", "10\n11\n12\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 10, 11, 12]);
    // Another file that may have the number of the one before.
    let (_, _, world) = daemon.stop();
    fs::remove_file(world.path("in.log")).unwrap();
    append(&world, "in.log", "200\n201\n202\n203\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 10, 11, 12, 200, 201, 202, 203]);
    // The same file with other lines in it.
    let (_, _, world) = daemon.stop();
    fs::write(world.path("in.log"), "300000\n300001\n300002\n").unwrap();
    let daemon = world.start();
    let all = [1, 2, 3, 10, 11, 12, 200, 201, 202, 203, 300_000, 300_001, 300_002];
    wait_for(&daemon, &all);
}
