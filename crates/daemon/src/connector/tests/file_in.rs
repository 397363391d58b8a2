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
async fn a_file_that_comes_later_is_read_at_once() {
    for mode in ["once", "repeat", "follow"] {
        let mut rig = Rig::new();
        rig.source("std:file-in", json!({ "path": "logs/in", "mode": mode })).await;
        let waiting = rig.until("source", |status| status.state == ActorState::Waiting).await;
        let why = waiting.why.unwrap();
        assert!(why.contains("logs/in is not there") && why.contains("correct `path`"), "{why}");
        let told = |rig: &Rig, name: &str| {
            let (past, _) = rig.system.events().since(0);
            past.iter().filter(|event| event.kind.name() == name).count()
        };
        assert_eq!((told(&rig, "waiting"), told(&rig, "failed")), (1, 0));
        // A link to nothing is as good as nothing.
        fs::create_dir(rig.path("logs")).unwrap();
        std::os::unix::fs::symlink("elsewhere", rig.path("logs/in")).unwrap();
        fs::write(rig.path("logs/elsewhere"), "1\n").unwrap();
        // No retry, no reload.
        assert_eq!(rig.next().await, "1");
        rig.until("source", |status| status.state != ActorState::Waiting).await;
        rig.end().await;
    }
}

#[tokio::test]
async fn a_pause_hides_the_wait_for_a_file_and_ends_nothing_of_it() {
    let mut rig = Rig::new();
    rig.source("std:file-in", json!({ "path": "in" })).await;
    rig.until("source", |status| status.state == ActorState::Waiting).await;
    let source = rig.system.actor("source").unwrap();
    source.pause().await;
    rig.until("source", |status| status.state == ActorState::Paused).await;
    source.resume().await;
    rig.until("source", |status| status.state == ActorState::Waiting).await;
    fs::write(rig.path("in"), "1\n").unwrap();
    assert_eq!(rig.next().await, "1");
    rig.end().await;
}

#[tokio::test]
async fn a_byte_order_mark_is_no_part_of_the_first_line() {
    let mut rig = Rig::new();
    fs::write(rig.path("in"), "\u{feff}1\r\n2\n").unwrap();
    rig.source("std:file-in", json!({ "path": "in" })).await;
    assert_eq!(rig.next().await, "1");
    assert_eq!(rig.next().await, "2");
    rig.end().await;
}

#[tokio::test]
async fn lines_of_text_are_strings() {
    let mut rig = Rig::new();
    fs::write(rig.path("in"), "GET \"/\" 200\n\n{\"a\":1}\r\ncaf\u{e9}").unwrap();
    rig.source("std:file-in", json!({ "path": "in", "lines": "text" })).await;
    for expected in [r#""GET \"/\" 200""#, r#""""#, r#""{\"a\":1}""#, "\"caf\u{e9}\""] {
        assert_eq!(rig.next().await, expected);
    }
    rig.end().await;
}

#[tokio::test]
async fn an_unreadable_line_is_in_its_error() {
    let mut rig = Rig::new();
    fs::write(rig.path("in"), "GET / 200\n1\n").unwrap();
    rig.source("std:file-in", json!({ "path": "in" })).await;
    let error: String = serde_json::from_str(&rig.next().await).unwrap();
    assert!(error.contains("in:1: no message: ") && error.ends_with(": GET / 200"), "{error}");
    assert_eq!(rig.next().await, "1");
    assert_eq!(rig.system.actor("source").unwrap().meters().unreadable.get(), 1);
    // A line that leaves by a wire is not a dead letter.
    assert_eq!(rig.system.dead_letters().list().len(), 0);
    rig.end().await;
}

#[tokio::test]
async fn a_hole_of_any_size_is_skipped() {
    let mut rig = Rig::new();
    let file = fs::File::create(rig.path("in")).unwrap();
    // What a writer that keeps its place leaves of a large log that is cut.
    file.set_len(1 << 40).unwrap();
    io::Seek::seek(&mut &file, io::SeekFrom::End(0)).unwrap();
    (&file).write_all(b"1\n2\n").unwrap();
    rig.source("std:file-in", json!({ "path": "in" })).await;
    assert_eq!(rig.next().await, "1");
    assert_eq!(rig.next().await, "2");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_does_not_tell_its_length_is_followed_without_reading_it_again() {
    let mut rig = Rig::new();
    rig.source(
        "std:file-in",
        json!({ "path": "/proc/self/comm", "mode": "follow", "lines": "text" }),
    )
    .await;
    let first = rig.next().await;
    assert!(first.len() > 2, "{first}");
    // Whatever is read again in this time would come.
    time::timeout(Duration::from_secs(60), rig.got.recv()).await.unwrap_err();
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
