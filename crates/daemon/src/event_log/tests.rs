use tempfile::TempDir;

use super::*;

fn events_in(folder: &Path) -> (Arc<Events>, EventLog) {
    let events = Arc::new(Events::default());
    let log = EventLog::open(folder.to_owned(), &events);
    (events, log)
}

/// A folder with so many events in it.
fn written(count: u64) -> TempDir {
    let folder = TempDir::new().unwrap();
    let (events, log) = events_in(folder.path());
    (0..count).for_each(|n| events.record(EventKind::ConfigRefused { why: format!("why {n}") }));
    log.flush();
    folder
}

fn numbers(events: &Events) -> Vec<u64> {
    events.since(0).0.iter().map(|event| event.number).collect()
}

#[test]
fn events_are_read_again_and_numbered_on() {
    let folder = written(5);
    let (events, log) = events_in(folder.path());
    assert_eq!(numbers(&events), [1, 2, 3, 4, 5]);
    assert_eq!(events.before(), 5);
    events.record(EventKind::ConfigKnown);
    log.flush();
    let (events, _) = events_in(folder.path());
    assert_eq!(numbers(&events), [1, 2, 3, 4, 5, 6]);
    let text = serde_json::to_value(&events.since(0).0[4]).unwrap();
    assert_eq!((&text["event"], &text["why"]), (&"config-refused".into(), &"why 4".into()));
}

#[test]
fn a_file_cut_anywhere_has_the_events_before_the_cut_and_takes_more() {
    let folder = written(3);
    let path = folder.path().join(NEWER);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let (events, log) = events_in(folder.path());
        let left = whole[..length].iter().filter(|byte| **byte == b'\n').count() as u64;
        assert_eq!(numbers(&events), (1..=left).collect::<Vec<_>>(), "{length}");
        events.record(EventKind::ConfigKnown);
        log.flush();
        let (events, _) = events_in(folder.path());
        assert_eq!(numbers(&events), (1..=left + 1).collect::<Vec<_>>(), "{length}");
    }
}

#[test]
fn a_flipped_bit_costs_the_event_that_it_is_in_and_is_told() {
    let folder = written(3);
    let path = folder.path().join(NEWER);
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &damaged).unwrap();
        let (events, _) = events_in(folder.path());
        let (all, _) = events.since(0);
        let here = all.iter().filter(|event| event.kind.name() == "config-refused").count();
        // The end of a line is one with two: both are gone. Of the last line it is a cut.
        assert!((1..=2).contains(&here), "bit {bit}: {here}");
        let told = all.iter().any(|event| event.kind.name() == "data-damaged");
        let is_last_end = bit / 8 == whole.len() - 1;
        assert_eq!(told, !is_last_end, "bit {bit}");
    }
}

#[test]
fn what_an_attempt_that_broke_has_written_is_not_written_again() {
    let folder = written(3);
    let (events, log) = events_in(folder.path());
    // It has got to the third event, and half of a line further; nobody has noted that.
    log.writing.lock().last = 1;
    let newer = folder.path().join(NEWER);
    OpenOptions::new().append(true).open(newer).unwrap().write_all(b"0123").unwrap();
    log.distrust_file();
    events.record(EventKind::ConfigKnown);
    log.flush();
    let (events, _) = events_in(folder.path());
    assert_eq!(numbers(&events), [1, 2, 3, 4]);
}

#[test]
fn the_disk_holds_a_bounded_number_and_the_last_ones() {
    let folder = TempDir::new().unwrap();
    let (events, log) = events_in(folder.path());
    let long = "x".repeat(MAX_LINE * 3);
    // Each is cut short, and all of them are still more than two files hold.
    let count = 3 * FULL / (8 << 10);
    for n in 0..count {
        events.record(EventKind::ConfigRefused { why: long.clone() });
        if n % 100 == 0 {
            log.flush();
        }
    }
    log.flush();
    let size = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
    assert!(size(OLDER) + size(NEWER) <= 2 * (FULL + MAX_LINE as u64));
    let (again, _) = events_in(folder.path());
    let numbers = numbers(&again);
    assert_eq!(numbers.last(), Some(&count));
    assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "no gap");
    assert!(numbers.len() as u64 > FULL / (9 << 10));
}

#[test]
fn a_disk_that_takes_nothing_loses_no_event_once_it_does_again() {
    let folder = TempDir::new().unwrap();
    // A folder where the file should be stops every user, root included.
    fs::create_dir(folder.path().join(NEWER)).unwrap();
    let (events, log) = events_in(folder.path());
    events.record(EventKind::ConfigKnown);
    log.flush();
    assert!(log.writing.lock().trouble.is_some());
    fs::remove_dir(folder.path().join(NEWER)).unwrap();
    events.record(EventKind::DeadLettersOnDisk);
    log.flush();
    assert!(log.writing.lock().trouble.is_none());
    let (again, _) = events_in(folder.path());
    let names: Vec<_> = again.since(0).0.iter().map(|event| event.kind.name()).collect();
    assert_eq!(names, ["data-damaged", "config-known", "dead-letters-on-disk"]);
}

#[tokio::test]
async fn events_are_written_as_they_come() {
    let folder = TempDir::new().unwrap();
    let (events, log) = events_in(folder.path());
    let stop = CancellationToken::new();
    let keep = Arc::new(log).keep(stop.clone());
    let path = folder.path().join(NEWER);
    let seen = async {
        events.record(EventKind::ConfigKnown);
        while read(&fs::read(&path).unwrap()).events.is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let both = async { tokio::join!(keep, seen) };
    tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
}
