//! What looks make of files. The clock is told, so that nothing waits.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, chown, symlink},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use reflowd_hot_reload::{
    Depth, FetchError, Include, Look, Moment, ScanOptions, Scanner, Sight, Snapshot, Trouble,
};
use reflowd_runtime::Digest;
use tempfile::TempDir;

use crate::{copy_time, digest, fifo, replace, swap_data};

/// A folder that is looked at, and a clock that stands still between looks.
struct Rig {
    root: TempDir,
    look: Look,
    scanner: Scanner,
    now: Moment,
    has: BTreeSet<Digest>,
}

impl Rig {
    fn new() -> Self {
        Self::with(ScanOptions::default())
    }

    fn with(options: ScanOptions) -> Self {
        let root = TempDir::new().unwrap();
        let modules = root.path().join("modules");
        fs::create_dir(&modules).unwrap();
        let look = Look { modules, ..Look::default() };
        let mut rig = Self {
            root,
            look,
            scanner: Scanner::new(options),
            now: Moment::now(),
            has: BTreeSet::new(),
        };
        // Nothing that a test writes is there at the very first look.
        rig.look();
        rig
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.look.modules.join(name)
    }

    fn write(&self, name: &str, bytes: &str) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// One look, now.
    fn look(&mut self) -> Snapshot {
        self.scanner.scan(&self.look, &self.has, Depth::Changed, self.now)
    }

    /// One look, later.
    fn after(&mut self, ms: u64) -> Snapshot {
        let later = Duration::from_millis(ms);
        self.now = Moment { mono: self.now.mono + later, wall: self.now.wall + later };
        self.look()
    }

    /// As many looks as are asked for at once.
    fn settle(&mut self) -> Snapshot {
        self.look();
        self.after(100)
    }
}

/// What `a.wasm` is.
fn a(snapshot: &Snapshot) -> Sight<Digest> {
    snapshot.stem("a")
}

fn holds(bytes: &str) -> Sight<Digest> {
    Sight::Present(digest(bytes))
}

#[test]
fn a_new_file_counts_once_it_has_stood_still() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    let snapshot = rig.look();
    assert_eq!(a(&snapshot), Sight::Unsettled);
    assert_eq!(snapshot.unsettled().collect::<Vec<_>>(), [Path::new("a.wasm")]);
    assert_eq!(snapshot.again, Some(rig.now.mono + Duration::from_millis(100)));
    assert_eq!(a(&rig.after(99)), Sight::Unsettled);
    let snapshot = rig.after(1);
    assert_eq!(a(&snapshot), holds("one"));
    assert_eq!(snapshot.bytes[&digest("one")], "one");
    assert_eq!(snapshot.again, None);
}

#[test]
fn files_that_were_there_at_the_start_count_at_once() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.now = Moment::now();
    rig.scanner = Scanner::new(ScanOptions::default());
    assert_eq!(a(&rig.look()), Sight::Unsettled, "it is a moment old");
    rig.scanner = Scanner::new(ScanOptions::default());
    rig.now.wall += Duration::from_secs(1);
    assert_eq!(a(&rig.look()), holds("one"));
}

#[test]
fn a_jump_of_the_clock_settles_nothing() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "hal");
    rig.now.wall += Duration::from_secs(3600);
    assert_eq!(a(&rig.look()), Sight::Unsettled);
    rig.write("a.wasm", "half");
    rig.now.wall -= Duration::from_secs(7200);
    assert_eq!(a(&rig.after(100)), Sight::Unsettled);
}

#[test]
fn a_copy_in_slow_chunks_is_never_taken_for_a_file() {
    let mut rig = Rig::new();
    let (old, new) = ("old".repeat(100), "new".repeat(1000));
    rig.write("a.wasm", &old);
    rig.settle();
    let mut seen = BTreeSet::new();
    for round in 0..50 {
        let bytes = if round % 2 == 0 { &new } else { &old };
        let mut file = File::create(rig.path("a.wasm")).unwrap();
        seen.extend(a(&rig.after(50)).present().copied());
        for chunk in bytes.as_bytes().chunks(bytes.len() / 20) {
            file.write_all(chunk).unwrap();
            seen.extend(a(&rig.after(99)).present().copied());
        }
        drop(file);
        assert_eq!(a(&rig.after(100)), holds(bytes), "round {round}");
    }
    assert!(seen.is_empty(), "a part was taken for the whole");
}

#[test]
fn a_file_that_grows_while_it_is_read_does_not_count() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.look();
    let mut file = File::options().append(true).open(rig.path("a.wasm")).unwrap();
    file.write_all(b"more").unwrap();
    assert_eq!(a(&rig.after(100)), Sight::Unsettled);
    assert_eq!(a(&rig.after(100)), holds("onemore"));
}

#[test]
fn a_file_renamed_into_place_counts() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    replace(&rig.path("a.wasm"), "two");
    assert_eq!(a(&rig.settle()), holds("two"));
    // As `mv` does, from another folder.
    fs::write(rig.root.path().join("built"), "three").unwrap();
    fs::rename(rig.root.path().join("built"), rig.path("a.wasm")).unwrap();
    assert_eq!(a(&rig.settle()), holds("three"));
}

#[test]
fn a_copy_that_keeps_the_time_and_the_size_shows() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    rig.write("other", "two");
    copy_time(&rig.path("a.wasm"), &rig.path("other"));
    fs::rename(rig.path("other"), rig.path("a.wasm")).unwrap();
    assert_eq!(a(&rig.settle()), holds("two"));
    // In place, too: the inode stays.
    rig.write("before", "");
    copy_time(&rig.path("a.wasm"), &rig.path("before"));
    rig.write("a.wasm", "six");
    copy_time(&rig.path("before"), &rig.path("a.wasm"));
    assert_eq!(a(&rig.settle()), holds("six"));
}

#[test]
fn a_write_through_another_hard_link_shows() {
    let mut rig = Rig::new();
    let outside = rig.root.path().join("outside");
    fs::write(&outside, "one").unwrap();
    fs::hard_link(&outside, rig.path("a.wasm")).unwrap();
    assert_eq!(a(&rig.settle()), holds("one"));
    fs::write(&outside, "two").unwrap();
    assert_eq!(a(&rig.settle()), holds("two"));
}

#[test]
fn the_same_content_again_is_no_news() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    let snapshot = rig.settle();
    rig.has.extend(snapshot.bytes.keys());
    rig.write("a.wasm", "one");
    let snapshot = rig.settle();
    assert_eq!(a(&snapshot), holds("one"));
    assert!(snapshot.bytes.is_empty());
}

#[test]
fn a_file_deleted_and_restored_was_never_gone() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    fs::remove_file(rig.path("a.wasm")).unwrap();
    assert_eq!(a(&rig.look()), Sight::Missing);
    assert_eq!(a(&rig.after(1999)), Sight::Missing);
    rig.write("a.wasm", "two");
    assert_eq!(a(&rig.look()), Sight::Unsettled);
    assert_eq!(a(&rig.after(100)), holds("two"));
    // The grace begins anew.
    fs::remove_file(rig.path("a.wasm")).unwrap();
    assert_eq!(a(&rig.after(1000)), Sight::Missing);
}

#[test]
fn a_file_missed_twice_is_gone() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    fs::remove_file(rig.path("a.wasm")).unwrap();
    let snapshot = rig.look();
    assert_eq!(a(&snapshot), Sight::Missing);
    assert_eq!(snapshot.again, Some(rig.now.mono + Duration::from_secs(2)));
    assert_eq!(a(&rig.after(2000)), Sight::Gone);
    let snapshot = rig.after(1);
    assert_eq!((a(&snapshot), snapshot.modules.len(), snapshot.again), (Sight::Gone, 0, None));
}

#[test]
fn names_that_programs_give_to_their_own_files_do_not_count() {
    let mut rig = Rig::new();
    for name in [
        ".a.wasm.Ab12Cd",
        ".a.wasm",
        "a.wasm~",
        ".a.wasm.swp",
        "a.wasm.bak",
        "a.wasm.tmp",
        ".#a.wasm",
        "#a.wasm#",
        "4913",
        ".wasm",
        "a.WASM",
        "a.wasm.part",
        "wasm",
    ] {
        rig.write(name, "one");
    }
    fs::create_dir(rig.path(".~tmp~")).unwrap();
    fs::write(rig.path(".~tmp~/a.wasm"), "one").unwrap();
    let snapshot = rig.settle();
    assert!(snapshot.modules.is_empty(), "{:?}", snapshot.modules);
}

#[test]
fn a_name_that_is_no_text_counts() {
    let mut rig = Rig::new();
    let name = OsStr::from_bytes(b"\xff\xfe.wasm");
    fs::write(rig.path(name), "one").unwrap();
    assert_eq!(rig.settle().modules[name], holds("one"));
}

#[test]
fn what_is_no_file_is_passed_over() {
    let mut rig = Rig::new();
    fs::create_dir(rig.path("folder.wasm")).unwrap();
    fifo(&rig.path("fifo.wasm"));
    symlink("nowhere.wasm", rig.path("dangling.wasm")).unwrap();
    symlink("loop.wasm", rig.path("loop.wasm")).unwrap();
    symlink("/dev/zero", rig.path("device.wasm")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(rig.path("socket.wasm")).unwrap();
    rig.write("a.wasm", "one");
    let snapshot = rig.settle();
    assert_eq!(snapshot.modules.len(), 1);
    assert_eq!(a(&snapshot), holds("one"));
    // A link that leads somewhere by now is a file like any other.
    rig.write("nowhere.wasm", "two");
    assert_eq!(rig.settle().stem("dangling"), holds("two"));
}

#[test]
fn a_pipe_in_place_of_a_file_is_a_missing_file() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    fs::remove_file(rig.path("a.wasm")).unwrap();
    fifo(&rig.path("a.wasm"));
    assert_eq!(a(&rig.look()), Sight::Missing);
    assert_eq!(a(&rig.after(2000)), Sight::Gone);
}

#[test]
fn files_behind_swapped_links_show() {
    let mut rig = Rig::new();
    let folder = rig.look.modules.clone();
    swap_data(&folder, "first", "a.wasm", "one");
    assert_eq!(a(&rig.settle()), holds("one"));
    swap_data(&folder, "second", "a.wasm", "two");
    assert_eq!(a(&rig.settle()), holds("two"));
}

#[test]
fn a_folder_that_is_away_says_nothing_of_its_files() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    let away = rig.root.path().join("away");
    fs::rename(&rig.look.modules, &away).unwrap();
    let unknown = Sight::Unknown(Trouble::FolderMissing);
    assert_eq!(a(&rig.look()), unknown);
    let snapshot = rig.after(60_000);
    assert_eq!(a(&snapshot), unknown);
    assert_eq!(snapshot.troubles[&rig.look.modules], Trouble::FolderMissing);
    // Back again, empty: only now does the grace begin.
    fs::create_dir(&rig.look.modules).unwrap();
    assert_eq!(a(&rig.after(1)), Sight::Missing);
    rig.write("a.wasm", "two");
    assert_eq!(a(&rig.settle()), holds("two"));
}

#[test]
fn a_folder_that_is_away_stops_the_grace_of_a_missing_file() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    fs::remove_file(rig.path("a.wasm")).unwrap();
    assert_eq!(a(&rig.look()), Sight::Missing);
    let away = rig.root.path().join("away");
    fs::rename(&rig.look.modules, &away).unwrap();
    rig.after(1000);
    fs::rename(&away, &rig.look.modules).unwrap();
    assert_eq!(a(&rig.after(1000)), Sight::Missing);
    assert_eq!(a(&rig.after(2000)), Sight::Gone);
}

#[test]
fn a_folder_that_is_no_folder_says_nothing() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    fs::remove_dir_all(&rig.look.modules).unwrap();
    fs::write(&rig.look.modules, "").unwrap();
    assert_eq!(a(&rig.look()), Sight::Unknown(Trouble::NotAFolder));
}

#[test]
fn ten_thousand_files_are_seen_and_not_read_again() {
    let mut rig = Rig::new();
    for number in 0..10_000 {
        rig.write(&format!("m{number}.wasm"), &number.to_string());
    }
    let snapshot = rig.settle();
    assert_eq!(snapshot.modules.len(), 10_000);
    assert_eq!(snapshot.bytes.len(), 10_000);
    assert_eq!(snapshot.stem("m777"), holds("777"));
    // Nobody has taken the bytes, and still no file is read for them.
    let snapshot = rig.after(1);
    assert_eq!(snapshot.modules.len(), 10_000);
    assert!(snapshot.bytes.is_empty());
}

#[test]
fn too_many_files_say_nothing() {
    let mut rig = Rig::with(ScanOptions { entries: 3, ..ScanOptions::default() });
    for name in ["a.wasm", "b.wasm", "c.wasm"] {
        rig.write(name, "one");
    }
    assert_eq!(a(&rig.settle()), holds("one"));
    rig.write("d.wasm", "one");
    assert_eq!(a(&rig.look()), Sight::Unknown(Trouble::TooMany { max: 3 }));
}

#[test]
fn a_file_over_the_limit_is_not_read() {
    let mut rig = Rig::with(ScanOptions { module_size: 3, ..ScanOptions::default() });
    rig.write("a.wasm", "one");
    rig.write("b.wasm", "four");
    let snapshot = rig.settle();
    assert_eq!(a(&snapshot), holds("one"));
    assert_eq!(snapshot.stem("b"), Sight::Unknown(Trouble::TooLarge { size: 4, max: 3 }));
}

#[test]
fn what_anybody_may_write_to_does_not_count() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.write("b.wasm", "two");
    rig.settle();
    fs::set_permissions(rig.path("a.wasm"), Permissions::from_mode(0o666)).unwrap();
    let snapshot = rig.settle();
    assert_eq!(a(&snapshot), Sight::Unknown(Trouble::Insecure(rig.path("a.wasm"))));
    assert_eq!(snapshot.stem("b"), holds("two"));
    // Sticky or not: anybody may put a new file there.
    for mode in [0o777, 0o1777] {
        fs::set_permissions(&rig.look.modules, Permissions::from_mode(mode)).unwrap();
        let trouble = rig.settle().modules_trouble;
        let real = fs::canonicalize(&rig.look.modules).unwrap();
        assert_eq!(trouble, Some(Trouble::Insecure(real)), "{mode:o}");
    }
    rig.scanner.set_options(ScanOptions { allow_insecure: true, ..ScanOptions::default() });
    assert_eq!(a(&rig.settle()), holds("one"));
}

#[test]
fn what_belongs_to_a_stranger_does_not_count() {
    /// A user who is neither root nor whoever runs the tests.
    const STRANGER: u32 = 54_321;
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    let path = rig.path("a.wasm");
    if chown(&path, Some(STRANGER), None).is_err() {
        println!("SKIPPED: only root may give files away");
        return;
    }
    let foreign = Sight::Unknown(Trouble::Foreign { path, owner: STRANGER });
    assert_eq!(a(&rig.settle()), foreign);
    // Whoever is in the folder's group may put files there, and owns them.
    fs::set_permissions(&rig.look.modules, Permissions::from_mode(0o775)).unwrap();
    assert_eq!(a(&rig.settle()), holds("one"));
    fs::set_permissions(&rig.look.modules, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(a(&rig.settle()), foreign);
    // Whose the folder is may do with it as they like.
    chown(&rig.look.modules, Some(STRANGER), None).unwrap();
    assert_eq!(a(&rig.settle()), holds("one"));
    chown(&rig.look.modules, Some(STRANGER + 1), None).unwrap();
    assert_eq!(a(&rig.settle()), foreign);
    rig.scanner.set_options(ScanOptions { allow_insecure: true, ..ScanOptions::default() });
    assert_eq!(a(&rig.settle()), holds("one"));
}

#[test]
fn a_module_can_be_fetched_later() {
    let mut rig = Rig::new();
    rig.write("a.wasm", "one");
    rig.settle();
    let path = rig.path("a.wasm");
    assert_eq!(rig.scanner.fetch(&path, &digest("one")).unwrap(), "one");
    rig.write("a.wasm", "two");
    let error = rig.scanner.fetch(&path, &digest("one")).unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    let error = rig.scanner.fetch(&path, &digest("one")).unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }), "{error}");
}

#[test]
fn a_module_asked_for_by_path_is_judged_like_any_other() {
    let mut rig = Rig::new();
    let folder = rig.root.path().join("other");
    let path = folder.join("x.wasm");
    rig.look.paths.insert(path.clone());
    let trouble = Sight::Unknown(Trouble::FolderMissing);
    assert_eq!(rig.look().paths[&path], trouble);
    fs::create_dir(&folder).unwrap();
    assert_eq!(rig.look().paths[&path], Sight::Gone, "it never was there");
    fs::write(&path, "one").unwrap();
    assert_eq!(rig.look().paths[&path], Sight::Unsettled);
    assert_eq!(rig.after(100).paths[&path], holds("one"));
    fs::remove_file(&path).unwrap();
    assert_eq!(rig.look().paths[&path], Sight::Missing);
    assert_eq!(rig.after(2000).paths[&path], Sight::Gone);
}

/// A configuration of one file and what it includes.
fn configured() -> (Rig, PathBuf, PathBuf) {
    let mut rig = Rig::new();
    let main = rig.root.path().join("reflowd.toml");
    let flows = rig.root.path().join("flows");
    fs::create_dir(&flows).unwrap();
    fs::write(&main, "main").unwrap();
    fs::write(flows.join("one.toml"), "one").unwrap();
    rig.look.configs.push(main.clone());
    rig.look.includes.push(Include::new(rig.root.path(), "flows/*.toml").unwrap());
    let sources = rig.settle().sources().unwrap();
    assert_eq!(sources.len(), 2);
    assert_eq!(&*sources[&main], "main");
    (rig, main, flows)
}

#[test]
fn configuration_counts_when_all_of_it_is_known() {
    let (mut rig, main, flows) = configured();
    let new = flows.join("two.toml");
    fs::write(&main, "main, edited").unwrap();
    rig.look();
    fs::write(&new, "tw").unwrap();
    // The first file has settled, the second has not.
    assert_eq!(rig.after(100).sources(), Err(vec![new.clone()]));
    fs::write(&new, "two").unwrap();
    assert_eq!(rig.after(100).sources(), Err(vec![new.clone()]));
    let sources = rig.after(100).sources().unwrap();
    assert_eq!((&*sources[&main], &*sources[&new]), ("main, edited", "two"));
}

#[test]
fn a_missing_configuration_is_unknown_and_never_empty() {
    let (mut rig, main, _) = configured();
    fs::remove_file(&main).unwrap();
    assert_eq!(rig.look().sources(), Err(vec![main.clone()]));
    let snapshot = rig.after(60_000);
    assert_eq!(snapshot.configs[&main], Sight::Unknown(Trouble::ConfigMissing));
    assert_eq!(snapshot.sources(), Err(vec![main]));
}

#[test]
fn an_included_file_is_gone_when_two_looks_have_missed_it() {
    let (mut rig, main, flows) = configured();
    let one = flows.join("one.toml");
    fs::remove_file(&one).unwrap();
    assert_eq!(rig.look().sources(), Err(vec![one]));
    let sources = rig.after(2000).sources().unwrap();
    assert_eq!(sources.keys().collect::<Vec<_>>(), [&main]);
}

#[test]
fn a_folder_of_included_files_that_is_away_is_unknown() {
    let (mut rig, _, flows) = configured();
    fs::rename(&flows, rig.root.path().join("away")).unwrap();
    rig.look();
    assert_eq!(rig.after(60_000).sources(), Err(vec![flows.join("one.toml")]));
}

#[test]
fn a_configuration_that_is_no_text_is_unknown() {
    let (mut rig, main, _) = configured();
    fs::write(&main, b"\xff").unwrap();
    let snapshot = rig.settle();
    assert_eq!(snapshot.configs[&main], Sight::Unknown(Trouble::NotText));
}

#[test]
fn every_folder_that_matters_is_a_root() {
    let (mut rig, ..) = configured();
    rig.look.paths.insert(rig.root.path().join("other/x.wasm"));
    let root = rig.root.path();
    let roots = [root.into(), root.join("flows"), root.join("modules"), root.join("other")];
    assert_eq!(rig.look.roots(), BTreeSet::from(roots));
}
