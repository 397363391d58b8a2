//! That changes are noticed: by events alone, and by rescans alone.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    future::Future,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use reflowd_hot_reload::{
    Depth, DiskWatcher, Eyes, Look, Moment, Pace, ScanOptions, Scanner, Sight, Snapshot, Wake,
    Watching,
};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{digest, replace, swap_data};

const QUIET: Duration = Duration::from_millis(20);

/// Looks as often as the watcher says so, in real time.
struct Rig {
    root: TempDir,
    look: Look,
    scanner: Scanner,
    watcher: DiskWatcher,
}

/// Turns a hang into a failure.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("nothing happened for a minute")
}

impl Rig {
    /// Watches `modules`, which holds `a.wasm` with the content `old`, and has
    /// looked at it until there was nothing more to see.
    async fn new(eyes: Eyes) -> Self {
        let root = TempDir::new().unwrap();
        let modules = root.path().join("modules");
        fs::create_dir(&modules).unwrap();
        fs::write(modules.join("a.wasm"), "old").unwrap();
        Self::start(root, eyes).await
    }

    async fn start(root: TempDir, eyes: Eyes) -> Self {
        let look = Look { modules: root.path().join("modules"), ..Look::default() };
        let rescan = match eyes {
            Eyes::Open => Duration::from_secs(3600),
            Eyes::Blind => Duration::from_millis(50),
        };
        let pace = Pace { quiet: QUIET, rescan };
        let watcher = DiskWatcher::new(look.roots(), pace, eyes);
        let scanner = Scanner::new(ScanOptions { quiet: QUIET, ..ScanOptions::default() });
        let mut rig = Self { root, look, scanner, watcher };
        rig.until(|snapshot| snapshot.stem("a") == Sight::Present(digest("old"))).await;
        rig
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.look.modules.join(name)
    }

    async fn look(&mut self) -> (Wake, Snapshot) {
        let wake = self.watcher.next().await;
        let nothing = BTreeSet::new();
        let snapshot = self.scanner.scan(&self.look, &nothing, Depth::Changed, Moment::now());
        if let Some(again) = snapshot.again {
            self.watcher.again(again);
        }
        self.look.targets.clone_from(&snapshot.targets);
        self.watcher.set_roots(self.look.roots());
        (wake, snapshot)
    }

    /// Looks until that is what there is to see.
    async fn until(&mut self, seen: impl Fn(&Snapshot) -> bool) -> Snapshot {
        soon(async {
            loop {
                let (_, snapshot) = self.look().await;
                if seen(&snapshot) {
                    return snapshot;
                }
            }
        })
        .await
    }

    /// Looks until `a.wasm` has that content.
    async fn until_a_is(&mut self, bytes: &str) {
        self.until(|snapshot| snapshot.stem("a") == Sight::Present(digest(bytes))).await;
    }
}

/// What `act` does to the rig's folder leads to `a.wasm` being seen as `new`,
/// by events alone and by rescans alone.
async fn check(act: impl Fn(&Rig)) {
    for eyes in [Eyes::Open, Eyes::Blind] {
        let mut rig = Rig::new(eyes).await;
        act(&rig);
        rig.until_a_is("new").await;
        let watching = if eyes == Eyes::Open { Watching::Events } else { Watching::Blind };
        assert_eq!(*rig.watcher.watching(), watching);
    }
}

#[tokio::test]
async fn a_copy_in_place_is_noticed() {
    check(|rig| fs::write(rig.path("a.wasm"), "new").unwrap()).await;
}

#[tokio::test]
async fn a_file_written_behind_a_link_is_noticed() {
    let writes: [fn(&Path); 2] =
        [|path| fs::write(path, "new").unwrap(), |path| replace(path, "new")];
    for write in writes {
        let root = TempDir::new().unwrap();
        for folder in ["modules", "built"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        let built = root.path().join("built/a.wasm");
        fs::write(&built, "old").unwrap();
        symlink("../built/a.wasm", root.path().join("modules/a.wasm")).unwrap();
        let mut rig = Rig::start(root, Eyes::Open).await;
        write(&built);
        rig.until_a_is("new").await;
    }
}

#[tokio::test]
async fn a_rename_over_the_file_is_noticed() {
    check(|rig| replace(&rig.path("a.wasm"), "new")).await;
}

#[tokio::test]
async fn a_file_moved_in_is_noticed() {
    check(|rig| {
        let built = rig.root.path().join("built");
        fs::write(&built, "new").unwrap();
        fs::rename(built, rig.path("a.wasm")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_file_unlinked_and_made_again_is_noticed() {
    check(|rig| {
        fs::remove_file(rig.path("a.wasm")).unwrap();
        fs::write(rig.path("a.wasm"), "new").unwrap();
    })
    .await;
}

/// Runs a command in the rig's root, beside which `built` holds `new`.
fn run(rig: &Rig, command: &str) {
    fs::write(rig.root.path().join("built"), "new").unwrap();
    let status = Command::new("sh").arg("-ec").arg(command).current_dir(&rig.root).status();
    assert!(status.unwrap().success(), "{command}");
}

#[tokio::test]
async fn what_programs_write_is_noticed() {
    for command in [
        "cp built modules/a.wasm",
        "touch -d 1999-01-01 built && cp -p built modules/a.wasm",
        "mv built modules/a.wasm",
        "install built modules/a.wasm",
        "ln -f built modules/a.wasm",
        "dd if=built of=modules/a.wasm bs=1 status=none",
        "cp built modules/.a.tmp && mv modules/.a.tmp modules/a.wasm",
        "sed -i s/old/new/ modules/a.wasm",
        "cp modules/a.wasm modules/a.wasm~ && cp built modules/a.wasm && rm modules/a.wasm~",
        "rm -r modules && mkdir modules && cp built modules/a.wasm",
    ] {
        check(|rig| run(rig, command)).await;
    }
}

#[tokio::test]
async fn a_hard_link_into_the_folder_is_noticed() {
    check(|rig| {
        let built = rig.root.path().join("built");
        fs::write(&built, "new").unwrap();
        fs::remove_file(rig.path("a.wasm")).unwrap();
        fs::hard_link(built, rig.path("a.wasm")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_writer_that_keeps_the_file_open_is_noticed() {
    for eyes in [Eyes::Open, Eyes::Blind] {
        let mut rig = Rig::new(eyes).await;
        let mut file = File::create(rig.path("a.wasm")).unwrap();
        file.write_all(b"new").unwrap();
        rig.until_a_is("new").await;
    }
}

#[tokio::test]
async fn swapped_links_are_noticed() {
    for eyes in [Eyes::Open, Eyes::Blind] {
        let root = TempDir::new().unwrap();
        let modules = root.path().join("modules");
        fs::create_dir(&modules).unwrap();
        swap_data(&modules, "first", "a.wasm", "old");
        let mut rig = Rig::start(root, eyes).await;
        swap_data(&modules, "second", "a.wasm", "new");
        rig.until_a_is("new").await;
    }
}

#[tokio::test]
async fn a_folder_removed_and_made_again_is_noticed() {
    check(|rig| {
        fs::remove_dir_all(&rig.look.modules).unwrap();
        fs::create_dir(&rig.look.modules).unwrap();
        fs::write(rig.path("a.wasm"), "new").unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_comes_back_later_is_noticed() {
    for eyes in [Eyes::Open, Eyes::Blind] {
        let mut rig = Rig::new(eyes).await;
        fs::remove_dir_all(&rig.look.modules).unwrap();
        rig.until(|snapshot| snapshot.modules_trouble.is_some()).await;
        fs::create_dir(&rig.look.modules).unwrap();
        rig.until(|snapshot| snapshot.modules_trouble.is_none()).await;
        fs::write(rig.path("a.wasm"), "new").unwrap();
        rig.until_a_is("new").await;
    }
}

#[tokio::test]
async fn a_folder_renamed_away_and_replaced_is_noticed() {
    check(|rig| {
        fs::rename(&rig.look.modules, rig.root.path().join("away")).unwrap();
        fs::create_dir(&rig.look.modules).unwrap();
        fs::write(rig.path("a.wasm"), "new").unwrap();
    })
    .await;
}

#[tokio::test]
async fn writes_into_a_replaced_folder_are_noticed() {
    for eyes in [Eyes::Open, Eyes::Blind] {
        let mut rig = Rig::new(eyes).await;
        for round in 0..25 {
            fs::rename(&rig.look.modules, rig.root.path().join(format!("away{round}"))).unwrap();
            fs::create_dir(&rig.look.modules).unwrap();
            fs::write(rig.path("a.wasm"), format!("first{round}")).unwrap();
            rig.until_a_is(&format!("first{round}")).await;
            // The old folder is watched no more, the new one is.
            fs::write(rig.path("a.wasm"), format!("second{round}")).unwrap();
            rig.until_a_is(&format!("second{round}")).await;
        }
    }
}

#[tokio::test]
async fn a_folder_behind_a_link_that_is_swapped_is_noticed() {
    for eyes in [Eyes::Open, Eyes::Blind] {
        let root = TempDir::new().unwrap();
        for (version, bytes) in [("v1", "old"), ("v2", "new")] {
            fs::create_dir(root.path().join(version)).unwrap();
            fs::write(root.path().join(version).join("a.wasm"), bytes).unwrap();
        }
        symlink("v1", root.path().join("modules")).unwrap();
        let mut rig = Rig::start(root, eyes).await;
        let link = rig.root.path().join("link");
        symlink("v2", &link).unwrap();
        fs::rename(link, &rig.look.modules).unwrap();
        rig.until_a_is("new").await;
        // And what happens in the folder that it leads to now.
        fs::write(rig.path("a.wasm"), "newer").unwrap();
        rig.until_a_is("newer").await;
    }
}

#[tokio::test]
async fn ten_thousand_files_at_once_are_noticed() {
    for eyes in [Eyes::Open, Eyes::Blind] {
        let mut rig = Rig::new(eyes).await;
        for number in 0..10_000 {
            fs::write(rig.path(format!("m{number}.wasm")), number.to_string()).unwrap();
        }
        let all = |snapshot: &Snapshot| {
            snapshot.modules.values().filter(|sight| sight.present().is_some()).count() == 10_001
        };
        let snapshot = rig.until(all).await;
        assert_eq!(snapshot.stem("m777"), Sight::Present(digest("777")));
    }
}

#[tokio::test]
async fn a_file_that_stays_away_is_gone() {
    let (mut one, mut other) = (Rig::new(Eyes::Open).await, Rig::new(Eyes::Blind).await);
    fs::remove_file(one.path("a.wasm")).unwrap();
    fs::remove_file(other.path("a.wasm")).unwrap();
    let gone = |snapshot: &Snapshot| snapshot.stem("a") == Sight::Gone;
    tokio::join!(one.until(gone), other.until(gone));
}

#[tokio::test]
async fn a_copy_in_chunks_is_never_taken_for_a_file() {
    let mut rig = Rig::new(Eyes::Open).await;
    // Long enough for a busy machine not to make a pause of its own.
    let quiet = Duration::from_millis(500);
    rig.scanner.set_options(ScanOptions { quiet, ..ScanOptions::default() });
    let new = "new".repeat(1 << 16);
    let known = [digest("old"), digest(&new)];
    let mut file = File::create(rig.path("a.wasm")).unwrap();
    for chunk in new.as_bytes().chunks(1 << 14) {
        file.write_all(chunk).unwrap();
        let (_, snapshot) = soon(rig.look()).await;
        let seen = snapshot.stem("a");
        assert!(seen.present().is_none_or(|digest| known.contains(digest)), "{seen:?}");
    }
    drop(file);
    rig.until_a_is(&new).await;
}

#[tokio::test]
async fn a_demand_is_answered_without_a_change() {
    let mut rig = Rig::new(Eyes::Open).await;
    let demand = rig.watcher.demand();
    demand.look();
    demand.look();
    let wake = soon(async {
        loop {
            let wake = rig.watcher.next().await;
            // What is left of the beginning comes first.
            if wake == Wake::Demand {
                return wake;
            }
        }
    })
    .await;
    assert_eq!(wake, Wake::Demand);
}

#[tokio::test]
async fn a_look_leads_to_no_other_look() {
    let mut rig = Rig::new(Eyes::Open).await;
    // Whatever the beginning has left behind is over when a file that is
    // written now has been seen; from then on there are only our own looks.
    fs::write(rig.path("a.wasm"), "new").unwrap();
    rig.until_a_is("new").await;
    let demand = rig.watcher.demand();
    let mut wakes = Vec::new();
    for _ in 0..20 {
        demand.look();
        wakes.push(soon(rig.look()).await.0);
        // A file is read for every look, which the watcher is told of.
        fs::read(rig.path("a.wasm")).unwrap();
    }
    assert_eq!(wakes, [Wake::Demand; 20]);
    let idle = timeout(QUIET * 10, rig.watcher.next()).await;
    assert!(idle.is_err(), "reading woke the watcher: {idle:?}");
}

#[tokio::test]
async fn another_set_of_folders_is_watched_from_the_next_look_on() {
    let mut rig = Rig::new(Eyes::Open).await;
    let other = rig.root.path().join("other");
    fs::create_dir(&other).unwrap();
    let path = other.join("x.wasm");
    fs::write(&path, "one").unwrap();
    rig.look.paths.insert(path.clone());
    rig.watcher.set_roots(rig.look.roots());
    for bytes in ["one", "two"] {
        fs::write(&path, bytes).unwrap();
        rig.until(|snapshot| snapshot.paths[&path] == Sight::Present(digest(bytes))).await;
    }
}
