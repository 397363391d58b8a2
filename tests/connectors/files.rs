//! Files that are read, and what happens to them meanwhile.

use std::{fs, io::Write as _, os::unix::fs::MetadataExt, process::Command, time::SystemTime};

use serde_json::Value;

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
fn what_a_former_version_has_noted_is_where_it_goes_on() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n3\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
    // That had the device in the file's number, no path and no beginning.
    let file = fs::metadata(daemon.world.path("in.log")).unwrap();
    let made = file.created().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let number = file.dev().rotate_left(32) ^ file.ino();
    let noted = format!(r#"{{"of":[{number},{}],"at":4,"count":2}}"#, made.as_nanos());
    let set = daemon.world.run(&["state", "set", "lines", &noted]);
    assert!(set.status.success(), "{set:?}");
    wait_for(&daemon, &[1, 2, 3, 3]);
    assert_eq!(events(&daemon, "source-gap"), [] as [Value; 0]);
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

/// Moves a file away and puts another in its place, as `logrotate` does with `create`.
fn rotate(world: &World, name: &str, to: &str, next: &str) {
    fs::rename(world.path(name), world.path(to)).unwrap();
    append(world, name, next);
}

/// The events of that name, as they are now.
fn events(daemon: &Daemon, name: &str) -> Vec<Value> {
    daemon.past(name)
}

#[test]
fn a_path_that_is_edited_away_and_back_is_read_on_where_it_was() {
    for mode in ["follow", "once"] {
        let config = |path: &str| followed("").replace("in.log", path).replace("follow", mode);
        let world = World::new(&config("in.log"));
        append(&world, "in.log", "1\n2\n");
        append(&world, "other.log", "100\n");
        let daemon = world.start();
        wait_for(&daemon, &[1, 2]);
        daemon.world.config(&config("other.log"));
        daemon.reload();
        wait_for(&daemon, &[1, 2, 100]);
        // To a file that is not there, too, and through a stop.
        daemon.world.config(&config("missing.log"));
        daemon.reload();
        daemon.until("it waits", |d| d.actor("lines")["state"] == "waiting");
        let (_, _, world) = daemon.stop();
        append(&world, "in.log", "3\n");
        world.config(&config("in.log"));
        let daemon = world.start();
        wait_for(&daemon, &[1, 2, 100, 3]);
        append(&daemon.world, "other.log", "101\n");
        daemon.world.config(&config("other.log"));
        daemon.reload();
        wait_for(&daemon, &[1, 2, 100, 3, 101]);
        // By another name it is the same file.
        let other = daemon.world.path("other-name.log");
        fs::hard_link(daemon.world.path("in.log"), other).unwrap();
        append(&daemon.world, "in.log", "4\n");
        daemon.world.config(&config("other-name.log"));
        daemon.reload();
        wait_for(&daemon, &[1, 2, 100, 3, 101, 4]);
        append(&daemon.world, "in.log", "5\n");
        daemon.world.config(&config("in.log"));
        daemon.reload();
        wait_for(&daemon, &[1, 2, 100, 3, 101, 4, 5]);
        append(&daemon.world, "in.log", "6\n");
        daemon.world.config(&config("other-name.log"));
        daemon.reload();
        wait_for(&daemon, &[1, 2, 100, 3, 101, 4, 5, 6]);
        assert_eq!(events(&daemon, "source-gap"), [] as [Value; 0]);
    }
}

#[test]
fn a_log_behind_a_link_is_read_through_its_rotations() {
    // As in /var/log/containers: the link's folder has none of the rotated files.
    let world = World::new(&followed("").replace("in.log", "containers/app.log"));
    fs::create_dir(world.path("containers")).unwrap();
    fs::create_dir(world.path("pods")).unwrap();
    std::os::unix::fs::symlink("../pods/0.log", world.path("containers/app.log")).unwrap();
    append(&world, "pods/0.log", "1\n");
    let daemon = world.start();
    wait_for(&daemon, &[1]);
    append(&daemon.world, "pods/0.log", "2\n");
    rotate(&daemon.world, "pods/0.log", "pods/0.log.20261123-101010", "3\n");
    rotate(&daemon.world, "pods/0.log", "pods/0.log.20261123-101011", "4\n");
    wait_for(&daemon, &[1, 2, 3, 4]);
    let (_, _, world) = daemon.stop();
    append(&world, "pods/0.log", "5\n");
    rotate(&world, "pods/0.log", "pods/0.log.20261123-101012", "6\n");
    rotate(&world, "pods/0.log", "pods/0.log.20261123-101013", "7\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 5, 6, 7]);
    // The container starts again: the link leads to another file, while nobody reads.
    let (_, _, world) = daemon.stop();
    append(&world, "pods/0.log", "8\n");
    append(&world, "pods/1.log", "9\n");
    std::os::unix::fs::symlink("../pods/1.log", world.path("containers/new")).unwrap();
    fs::rename(world.path("containers/new"), world.path("containers/app.log")).unwrap();
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(events(&daemon, "source-gap"), [] as [Value; 0]);
}

#[test]
fn a_cut_under_a_writer_that_keeps_its_place_loses_no_line() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "");
    let mut writer = fs::File::options().write(true).open(world.path("in.log")).unwrap();
    let daemon = world.start();
    writer.write_all(b"1\n2\n").unwrap();
    wait_for(&daemon, &[1, 2]);
    let copy_and_cut = |world: &World| {
        fs::copy(world.path("in.log"), world.path("in.log.1")).unwrap();
        let file = fs::File::options().write(true).open(world.path("in.log")).unwrap();
        file.set_len(0).unwrap();
    };
    copy_and_cut(&daemon.world);
    daemon.until("it has seen that", |d| d.log_text().contains("followed file was cut, and"));
    writer.write_all(b"3\n").unwrap();
    wait_for(&daemon, &[1, 2, 3]);
    // Cut and written to between two looks; and while nobody reads.
    copy_and_cut(&daemon.world);
    writer.write_all(b"4\n").unwrap();
    wait_for(&daemon, &[1, 2, 3, 4]);
    let (_, _, world) = daemon.stop();
    copy_and_cut(&world);
    writer.write_all(b"5\n").unwrap();
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 5]);
    assert_eq!(daemon.sum("reflowd_unreadable_total"), 0.0);
}

#[test]
fn what_was_not_read_before_a_cut_is_read_in_the_copy() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    let (_, _, world) = daemon.stop();
    let copy_and_cut = |world: &World, lines: &str, next: &str| {
        append(world, "in.log", lines);
        _ = fs::rename(world.path("in.log.1"), world.path("in.log.2"));
        fs::copy(world.path("in.log"), world.path("in.log.1")).unwrap();
        // The number stays, and what comes is longer than what was.
        fs::write(world.path("in.log"), next).unwrap();
    };
    copy_and_cut(&world, "3\n4\n", "500\n600\n700\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 500, 600, 700]);
    // While it reads, and no look is between the last line and the cut.
    copy_and_cut(&daemon.world, "8\n", "9000\n9001\n9002\n9003\n");
    wait_for(&daemon, &[1, 2, 3, 4, 500, 600, 700, 8, 9000, 9001, 9002, 9003]);
    assert_eq!(events(&daemon, "source-gap"), [] as [Value; 0]);
}

#[test]
fn a_file_that_is_out_of_reach_is_told() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    let (_, _, world) = daemon.stop();
    // Rotated and compressed.
    let gzip = |world: &World, name: &str| {
        let status = Command::new("gzip").arg(world.path(name)).status().unwrap();
        assert!(status.success());
    };
    append(&world, "in.log", "3\n");
    rotate(&world, "in.log", "in.log.1", "4\n");
    gzip(&world, "in.log.1");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 4]);
    let gaps = events(&daemon, "source-gap");
    let gap = |gap: &Value| (gap["after_byte"].as_u64(), gap["after_line"].as_u64());
    assert_eq!(gaps.iter().map(gap).collect::<Vec<_>>(), [(Some(4), Some(2))]);
    let why = gaps[0]["why"].as_str().unwrap();
    assert!(why.contains("compressed") && why.contains("in.log.1.gz"), "{why}");
    daemon.logs("the rest of a file may never be read");
    // The same, with nothing in it that was not read.
    let (_, _, world) = daemon.stop();
    fs::remove_file(world.path("in.log.1.gz")).unwrap();
    rotate(&world, "in.log", "in.log.1", "5\n");
    gzip(&world, "in.log.1");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 4, 5]);
    assert_eq!(events(&daemon, "source-gap"), [] as [Value; 0]);
    // Moved to another folder.
    let (_, _, world) = daemon.stop();
    append(&world, "in.log", "6\n");
    rotate(&world, "in.log", "data/old", "7\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 4, 5, 7]);
    let gaps = events(&daemon, "source-gap");
    assert_eq!(gaps.len(), 1);
    assert!(gaps[0]["why"].as_str().unwrap().contains("moved elsewhere or removed"), "{gaps:?}");
}

#[test]
fn a_copy_with_the_times_of_its_original_is_not_read_as_another() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    let rotate = |world: &World, line: &str| {
        let (from, to) = (world.path("in.log"), world.path("in.log.1"));
        assert!(Command::new("cp").arg("-p").args([from, to]).status().unwrap().success());
        append(world, "new", line);
        fs::rename(world.path("new"), world.path("in.log")).unwrap();
    };
    rotate(&daemon.world, "3\n");
    wait_for(&daemon, &[1, 2, 3]);
    let (_, _, world) = daemon.stop();
    append(&world, "in.log", "4\n");
    rotate(&world, "5\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 5]);
}

#[test]
fn unreadable_lines_are_told_and_kept() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "one\n1\ntwo\nthree\n2\nfour\nfive\n3\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
    daemon.until("all are told", |d| {
        let told = events(d, "unreadable");
        told.iter().map(|event| event["lines"].as_u64().unwrap()).sum::<u64>() == 5
    });
    assert!(events(&daemon, "unreadable")[0]["why"].as_str().unwrap().contains("in.log:"));
    assert_eq!(daemon.sum("reflowd_unreadable_total"), 5.0);
    let metrics = daemon.metrics();
    let of = r#"reflowd_dead_letters_total{actor="lines",reason="unreadable"}"#;
    assert_eq!(metrics.get(of), Some(&5.0));
    let letters = daemon.get("/v1/dead-letters?reason=unreadable").body;
    let letters: Vec<Value> =
        letters.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let what: Vec<_> =
        letters.iter().map(|letter| &letter["envelope"]["message"]["data"]).collect();
    assert_eq!(what, ["one", "two", "three", "four", "five"]);
    assert!(letters[0]["reason"].as_str().unwrap().contains("in.log:1: no message: "));
    // A source takes nothing: the letters stay, and the answer says why.
    let replayed = daemon.post("/v1/dead-letters/replay?reason=unreadable", "").json();
    assert_eq!((&replayed["replayed"], &replayed["stayed"][0]["letters"]), (&0.into(), &5.into()));
    let why = replayed["stayed"][0]["why"].as_str().unwrap();
    assert!(why.contains("`lines` has read it and takes no messages"), "{why}");
    // The position is that of the last line: nothing is refused twice.
    let (_, _, world) = daemon.stop();
    let daemon = world.start();
    append(&daemon.world, "in.log", "4\n");
    wait_for(&daemon, &[1, 2, 3, 4]);
    assert_eq!(daemon.sum("reflowd_unreadable_total"), 0.0);
}

#[test]
fn a_source_that_waits_is_shown_to_wait() {
    let world = World::new(&followed(""));
    let daemon = world.start();
    daemon.until("it waits", |d| d.actor("lines")["state"] == "waiting");
    daemon.wait_event("waiting", "lines");
    let ps = daemon.world.run(&["ps"]);
    assert!(String::from_utf8_lossy(&ps.stdout).contains("waiting"), "{ps:?}");
    let states = r#"reflowd_actors{state="waiting"}"#;
    assert_eq!(daemon.metrics().get(states), Some(&1.0));
    let health = daemon.get("/readyz?verbose").body;
    assert!(health.contains("[+] actors: of 2, lines is waiting"), "{health}");
    append(&daemon.world, "in.log", "1\n");
    wait_for(&daemon, &[1]);
    assert_eq!(daemon.actor("lines")["state"], "active");
    assert_eq!(events(&daemon, "failed"), [] as [Value; 0]);
}

#[test]
fn wildcards_in_a_path_are_refused_before_anything_runs() {
    let world = World::new(&followed("").replace("in.log", "*.log"));
    let check = world.run(&["check"]);
    assert_eq!(check.status.code(), Some(78));
    let said = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
    assert!(said.contains("wildcards, which are not supported"), "{said}");
}

#[test]
fn a_folder_that_is_replaced_and_a_file_that_is_linked_away_are_read_to_their_ends() {
    let world = World::new(&followed("").replace("in.log", "logs/in.log"));
    fs::create_dir(world.path("logs")).unwrap();
    append(&world, "logs/in.log", "1\n");
    let daemon = world.start();
    wait_for(&daemon, &[1]);
    fs::rename(daemon.world.path("logs"), daemon.world.path("logs.old")).unwrap();
    fs::create_dir(daemon.world.path("logs")).unwrap();
    append(&daemon.world, "logs/in.log", "4\n");
    append(&daemon.world, "logs.old/in.log", "2\n3\n");
    wait_for(&daemon, &[1, 2, 3, 4]);
    // Linked under another name, which may be any, and then replaced, while nobody reads. Its
    // last line never had an end.
    let (_, _, world) = daemon.stop();
    append(&world, "logs/in.log", "5\n6");
    fs::hard_link(world.path("logs/in.log"), world.path("logs/archive")).unwrap();
    append(&world, "new", "7\r\n");
    fs::rename(world.path("new"), world.path("logs/in.log")).unwrap();
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(events(&daemon, "source-gap"), [] as [Value; 0]);
}

#[test]
fn a_log_that_is_rotated_twice_with_delayed_compression_goes_on_with_what_is_in_reach() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n");
    let daemon = world.start();
    wait_for(&daemon, &[1]);
    let (_, _, world) = daemon.stop();
    append(&world, "in.log", "2\n");
    rotate(&world, "in.log", "in.log.1", "3\n");
    fs::rename(world.path("in.log.1"), world.path("in.log.2")).unwrap();
    assert!(Command::new("gzip").arg(world.path("in.log.2")).status().unwrap().success());
    rotate(&world, "in.log", "in.log.1", "4\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 3, 4]);
    let gaps = events(&daemon, "source-gap");
    assert_eq!(gaps.len(), 1);
    assert!(gaps[0]["why"].as_str().unwrap().contains("in.log.2.gz"), "{gaps:?}");
}

#[test]
fn a_file_with_a_byte_order_mark_can_be_sent() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n");
    append(&world, "one.json", "\u{feff}2");
    append(&world, "more.jsonl", "\u{feff}3\n4\n");
    let daemon = world.start();
    wait_for(&daemon, &[1]);
    for file in ["@one.json", "@more.jsonl"] {
        let sent = daemon.world.run(&["send", "file.in", file]);
        assert!(sent.status.success(), "{sent:?}");
    }
    wait_for(&daemon, &[1, 2, 3, 4]);
}

#[test]
fn a_file_of_nothing_but_unreadable_lines_does_not_fill_the_dead_letters() {
    let world = World::new(&followed(""));
    append(&world, "in.log", &"GET / 200\n".repeat(5000));
    append(&world, "in.log", "1\n");
    let daemon = world.start();
    wait_for(&daemon, &[1]);
    assert_eq!(daemon.sum("reflowd_unreadable_total"), 5000.0);
    let kept = daemon.sum("reflowd_dead_letters_total");
    assert!((100.0..1000.0).contains(&kept), "{kept}");
}
