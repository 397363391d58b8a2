//! `std:file-in` in a system of its own.

use std::io::Write as _;

use super::*;

const LINES: &str =
    "{\"b\":1.0, \"a\":1e2,\"n\":123456789012345678901234567890}\n\n  \n3\r\nno json\n\"end\"";

#[tokio::test]
async fn a_file_is_read_once_byte_for_byte() {
    let mut rig = Rig::new();
    fs::write(rig.path("in"), LINES).unwrap();
    rig.source("std:file-in", json!({ "path": "in" })).await;
    assert_eq!(rig.next().await, r#"{"b":1.0, "a":1e2,"n":123456789012345678901234567890}"#);
    assert_eq!(rig.next().await, "3");
    let error = rig.next().await;
    assert!(error.contains("in:5: no message: "), "{error}");
    assert_eq!(rig.next().await, "\"end\"");
    rig.until("source", |s| s.why.as_ref().is_some_and(|why| why.contains("nothing more"))).await;
    rig.end().await;
}

#[tokio::test]
async fn a_file_is_repeated_as_it_is_then() {
    let mut rig = Rig::new();
    fs::write(rig.path("in"), "1\n2\n").unwrap();
    rig.source("std:file-in", json!({ "path": "in", "mode": "repeat" })).await;
    for expected in ["1", "2", "1", "2", "1"] {
        assert_eq!(rig.next().await, expected);
    }
    fs::write(rig.path("new"), "7\n").unwrap();
    fs::rename(rig.path("new"), rig.path("in")).unwrap();
    while rig.next().await != "7" {}
    assert_eq!(rig.next().await, "7");
    rig.end().await;
}

#[tokio::test]
async fn a_file_is_followed_through_what_happens_to_it() {
    let mut rig = Rig::new();
    let append = |name: &str, text: &str| {
        let mut file = fs::File::options().append(true).create(true).open(rig.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append("in", "1\n2");
    let moved = rig.path("moved");
    let path = rig.path("in");
    rig.source("std:file-in", json!({ "path": "in", "mode": "follow" })).await;
    let append = |text: &str| {
        let mut file = fs::File::options().append(true).create(true).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    assert_eq!(rig.next().await, "1");
    // A line is whole when its end has come.
    append("3\n");
    assert_eq!(rig.next().await, "23");
    fs::rename(&path, &moved).unwrap();
    append("444\n");
    assert_eq!(rig.next().await, "444");
    fs::write(&path, "").unwrap();
    append("5\n");
    assert_eq!(rig.next().await, "5");
    rig.end().await;
}

#[tokio::test]
async fn a_missing_file_is_an_error_until_it_is_there() {
    let mut rig = Rig::new();
    rig.source("std:file-in", json!({ "path": "in" })).await;
    let failed = rig.until("source", |status| status.state == ActorState::Failed).await;
    let why = failed.why.unwrap();
    assert!(why.contains("/in: No such file") && why.contains("correct `path`"), "{why}");
    fs::write(rig.path("in"), "1\n").unwrap();
    rig.system.actor("source").unwrap().retry().await;
    assert_eq!(rig.next().await, "1");
    rig.end().await;
}

#[tokio::test]
async fn what_is_no_file_is_not_waited_for() {
    let mut rig = Rig::new();
    rig.source("std:file-in", json!({ "path": "." })).await;
    let failed = rig.until("source", |status| status.state == ActorState::Failed).await;
    assert!(failed.why.unwrap().contains("no regular file"));
    rig.end().await;
}

#[tokio::test]
async fn an_empty_file_is_not_read_in_circles() {
    let mut rig = Rig::new();
    fs::write(rig.path("in"), "").unwrap();
    rig.source("std:file-in", json!({ "path": "in", "mode": "repeat" })).await;
    fs::write(rig.path("in"), "1\n").unwrap();
    assert_eq!(rig.next().await, "1");
    rig.end().await;
}

#[tokio::test]
async fn a_source_is_held_up_by_a_full_mailbox() {
    let mut rig = Rig::new();
    rig.brake = Arc::new(Semaphore::new(0));
    let lines: String = (0..100).map(|n| format!("{n}\n")).collect();
    fs::write(rig.path("in"), lines).unwrap();
    rig.source("std:file-in", json!({ "path": "in" })).await;
    rig.until("source", |status| status.state == ActorState::Blocked).await;
    rig.brake.add_permits(100);
    for n in 0..100 {
        assert_eq!(rig.next().await, n.to_string());
    }
    rig.end().await;
}
