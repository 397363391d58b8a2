//! A system that has run out of what watching takes. Alone in its process,
//! because it takes away the process's descriptors.

use std::{fs, time::Duration};

use reflowd_hot_reload::{DiskWatcher, Eyes, Pace, Wake, Watching};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::time::timeout;

#[tokio::test]
async fn without_events_the_folder_is_looked_at_every_so_often() {
    let root = TempDir::new().unwrap();
    let hour = Duration::from_secs(3600);
    let pace = Pace { quiet: Duration::from_millis(10), rescan: hour };
    let mut watcher = DiskWatcher::new([root.path().to_owned()], pace, Eyes::Open);
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    for _ in 0..2 {
        let wake = timeout(Duration::from_secs(30), watcher.next()).await.unwrap();
        assert_eq!(wake, Wake::Rescan);
        let Watching::Polling { why } = watcher.watching() else { panic!("there are no events") };
        assert!(why.contains("open files"), "{why}");
    }

    // It recovers by itself.
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(timeout(Duration::from_secs(30), watcher.next()).await.unwrap(), Wake::Rescan);
    assert_eq!(*watcher.watching(), Watching::Events);
    fs::write(root.path().join("a.wasm"), "new").unwrap();
    assert_eq!(timeout(Duration::from_secs(30), watcher.next()).await.unwrap(), Wake::Events);
}
