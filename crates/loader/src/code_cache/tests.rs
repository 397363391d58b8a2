//! What is kept comes back, and nothing that was touched does.

use std::{os::unix::fs::symlink, time::Instant};

use tempfile::TempDir;
use wasmtime::{Config, Instance, Store};

use super::*;

/// A cache with the code of one module in it.
struct Rig {
    folder: TempDir,
    cache: CodeCache,
    engine: Engine,
    digest: Digest,
    module: Module,
}

impl Rig {
    /// A module that answers 7.
    fn start() -> Self {
        let bytes = wat::parse_str("(module (func (export \"f\") (result i32) i32.const 7))");
        Self::with(&bytes.unwrap())
    }

    fn with(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = CodeCache::open(folder.path().join("code")).unwrap();
        let engine = Engine::default();
        let module = Module::new(&engine, bytes).unwrap();
        let digest = Digest::new(Sha256::digest(bytes).into());
        cache.put(&engine, &digest, &module).unwrap();
        Self { folder, cache, engine, digest, module }
    }

    fn put(&self) {
        self.cache.put(&self.engine, &self.digest, &self.module).unwrap();
    }

    fn get(&self) -> Option<Module> {
        self.cache.get(&self.engine, &self.digest)
    }

    /// The only file in the folder.
    fn entry(&self) -> PathBuf {
        let [name] = &self.cache.names().unwrap()[..] else { panic!("not one file") };
        self.cache.folder.join(name)
    }

    /// Nothing is taken from the folder, and then the module is kept anew.
    #[track_caller]
    fn check_rebuilt(&self, what: &str) {
        assert!(self.get().is_none(), "{what} was trusted");
        assert_eq!(self.cache.names().unwrap(), [""; 0], "{what} is still there");
        self.put();
        assert!(self.get().is_some(), "{what} could not be replaced");
    }
}

fn write_entry(path: &Path, code: &[u8], mode: u32) {
    fs::write(path, code).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn guest(name: &str) -> Vec<u8> {
    fs::read(format!("{}/../../tests/guests/{name}.wasm", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    /// With the seed of the environment, or one that is printed.
    fn new() -> Self {
        let seed = match std::env::var("REFLOWD_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs(),
        };
        println!("REFLOWD_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((x ^ (x >> 31)) % end as u64).unwrap()
    }
}

#[test]
fn what_is_put_comes_back_and_runs() {
    let rig = Rig::start();
    let module = rig.get().expect("a hit");
    let mut store = Store::new(&rig.engine, ());
    let instance = Instance::new(&mut store, &module, &[]).unwrap();
    let f = instance.get_typed_func::<(), i32>(&mut store, "f").unwrap();
    assert_eq!(f.call(&mut store, ()).unwrap(), 7);
    let mode = fs::metadata(rig.entry()).unwrap().mode();
    assert_eq!(mode & 0o7777, ENTRY_MODE);
}

#[test]
fn another_process_finds_what_this_one_has_kept() {
    let rig = Rig::start();
    let cache = CodeCache::open(rig.folder.path().join("code")).unwrap();
    assert!(cache.get(&Engine::default(), &rig.digest).is_some());
}

#[test]
fn another_module_and_other_settings_miss() {
    let rig = Rig::start();
    assert!(rig.cache.get(&rig.engine, &Digest::new([9; 32])).is_none());
    let other = Engine::new(Config::new().epoch_interruption(true)).unwrap();
    assert!(rig.cache.get(&other, &rig.digest).is_none());
    assert!(rig.get().is_some());
}

#[test]
fn code_of_other_settings_under_our_name_is_removed() {
    let rig = Rig::start();
    let other = Engine::new(Config::new().epoch_interruption(true)).unwrap();
    let from = rig.entry();
    let code = checksum(&fs::read(&from).unwrap());
    let name = format!("{}{code}{ENTRY}", entry_start(&other, &rig.digest));
    fs::rename(&from, rig.cache.folder.join(name)).unwrap();
    assert!(rig.cache.get(&other, &rig.digest).is_none());
    assert_eq!(rig.cache.names().unwrap(), [""; 0]);
}

#[test]
fn an_entry_that_is_cut_off_anywhere_is_rebuilt() {
    let rig = Rig::with(&guest("stamp-a"));
    let path = rig.entry();
    let code = fs::read(&path).unwrap();
    for end in (0..code.len()).step_by(64) {
        write_entry(&path, &code[..end], ENTRY_MODE);
        assert!(rig.get().is_none(), "{end} of {} bytes were trusted", code.len());
        assert!(!path.exists());
    }
    rig.check_rebuilt("nothing");
    let mut longer = code;
    longer.push(0);
    write_entry(&path, &longer, ENTRY_MODE);
    rig.check_rebuilt("one byte more");
}

#[test]
fn an_entry_with_any_flipped_bit_is_rebuilt() {
    let rig = Rig::with(&guest("stamp-a"));
    let path = rig.entry();
    let mut code = fs::read(&path).unwrap();
    let mut dice = Dice::new();
    for round in 0..1000 {
        let (at, bit) = (dice.below(code.len()), dice.below(8));
        code[at] ^= 1 << bit;
        write_entry(&path, &code, ENTRY_MODE);
        code[at] ^= 1 << bit;
        assert!(rig.get().is_none(), "bit {bit} of byte {at} was flipped, and it was trusted");
        if round % 100 == 0 {
            rig.check_rebuilt("nothing");
        }
    }
}

#[test]
fn a_checksum_in_the_name_that_is_not_the_contents_is_refused() {
    let rig = Rig::start();
    let path = rig.entry();
    let name = path.to_str().unwrap().replace(ENTRY, "");
    for wrong in [format!("{name}0"), name[..name.len() - 1].into(), name[..name.len() - 64].into()]
    {
        fs::rename(rig.entry(), format!("{wrong}{ENTRY}")).unwrap();
        rig.check_rebuilt(&wrong);
    }
}

#[test]
fn a_file_that_others_could_have_written_is_refused() {
    let rig = Rig::start();
    for mode in [0o666, 0o620, 0o602, 0o644, 0o700, 0o4600] {
        let path = rig.entry();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        rig.check_rebuilt(&format!("mode {mode:o}"));
    }
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let rig = Rig::start();
    let path = rig.entry();
    let elsewhere = rig.folder.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    rig.check_rebuilt("a symbolic link");
    assert!(elsewhere.exists(), "what the link leads to is not ours to remove");

    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(ENTRY_MODE),
        0,
    )
    .unwrap();
    rig.check_rebuilt("a FIFO");

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(rig.get().is_none());
}

#[test]
fn a_file_over_the_capacity_is_not_even_read() {
    let rig = Rig::start();
    let path = rig.entry();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    // A hole: no disk could hold it.
    file.set_len(CAPACITY + 1).unwrap();
    rig.check_rebuilt("a file of more than a gigabyte");
}

#[test]
fn the_entries_used_longest_ago_make_room() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    #[track_caller]
    fn check(
        entries: &[(u64, u64, &str)],
        newest: &str,
        gone: &[&str],
        at: impl Fn(u64) -> SystemTime,
    ) {
        let mut entries: Vec<_> = entries
            .iter()
            .map(|&(used, size, name)| Entry { used: at(used), size, name: name.into() })
            .collect();
        assert_eq!(over_capacity(&mut entries, newest, 100), gone);
    }
    check(&[], "a", &[], at);
    check(&[(1, 100, "a")], "a", &[], at);
    check(&[(2, 50, "b"), (1, 50, "a")], "b", &[], at);
    check(&[(2, 50, "b"), (1, 51, "a")], "b", &["a"], at);
    check(&[(3, 90, "c"), (2, 50, "b"), (1, 51, "a")], "c", &["a", "b"], at);
    // A clock that was set back.
    check(&[(1, 90, "new"), (3, 30, "b"), (2, 5, "a")], "new", &["a", "b"], at);
    check(&[(1, 200, "new"), (2, 5, "a")], "new", &["a"], at);
}

#[test]
fn a_full_cache_lets_go_of_what_was_not_used() {
    let rig = Rig::start();
    let size = fs::metadata(rig.entry()).unwrap().len();
    let cache = CodeCache::with_capacity(rig.cache.folder.clone(), 3 * size + 1000).unwrap();
    let digest = |n| Digest::new([n; 32]);
    for n in 1..=2 {
        cache.put(&rig.engine, &digest(n), &rig.module).unwrap();
    }
    // All three are old; the first is used again.
    for name in cache.names().unwrap() {
        let file = File::open(cache.folder.join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    }
    assert!(rig.get().is_some());
    for n in 3..=4 {
        cache.put(&rig.engine, &digest(n), &rig.module).unwrap();
    }
    assert_eq!(cache.names().unwrap().len(), 3);
    let kept: Vec<_> = (1..=4).map(|n| cache.get(&rig.engine, &digest(n)).is_some()).collect();
    assert_eq!(kept, [false, false, true, true]);
    assert!(rig.get().is_some());

    let tiny = CodeCache::with_capacity(rig.folder.path().join("tiny"), size - 1).unwrap();
    tiny.put(&rig.engine, &rig.digest, &rig.module).unwrap();
    assert_eq!(tiny.names().unwrap(), [""; 0]);
}

#[test]
fn files_without_a_writer_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join(format!("1-0{UNFINISHED}"));
    let fresh = folder.path().join(format!("1-1{UNFINISHED}"));
    let foreign = folder.path().join("notes.txt");
    for path in [&old, &fresh, &foreign] {
        fs::write(path, "half").unwrap();
    }
    for path in [&old, &foreign] {
        File::open(path).unwrap().set_modified(SystemTime::now() - ABANDONED).unwrap();
    }
    CodeCache::open(folder.path()).unwrap();
    assert!(!old.exists() && fresh.exists() && foreign.exists());
}

#[test]
fn a_folder_that_others_can_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    CodeCache::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, FOLDER_MODE);
    for mode in [0o777, 0o770, 0o702, 0o1777] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = CodeCache::open(&path).unwrap_err();
        assert!(error.to_string().ends_with("`chmod 700` it"), "{error}");
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = CodeCache::open(&file).unwrap_err();
    assert!(matches!(error, CodeCacheError::NoFolder(_)), "{error}");
    let error = CodeCache::open(file.join("below")).unwrap_err();
    assert!(error.to_string().contains("give a folder"), "{error}");
}

#[test]
fn what_belongs_to_another_user_is_refused() {
    // Whoever may give files away has made one; others find one that is not theirs.
    let may_give = geteuid().is_root();
    let rig = Rig::start();
    if may_give {
        std::os::unix::fs::chown(rig.entry(), Some(1), None).unwrap();
        rig.check_rebuilt("a file of another user");
        std::os::unix::fs::chown(&rig.cache.folder, Some(1), None).unwrap();
    }
    let foreign = if may_give { &rig.cache.folder } else { Path::new("/usr") };
    let error = CodeCache::open(foreign).unwrap_err();
    assert!(matches!(error, CodeCacheError::Foreign { .. }), "{error}");
}

#[test]
fn what_cannot_be_published_leaves_nothing_behind() {
    let rig = Rig::start();
    let path = rig.entry();
    fs::remove_file(&path).unwrap();
    // No file can take the place of a folder that is not empty.
    fs::create_dir_all(path.join("below")).unwrap();
    let error = rig.cache.put(&rig.engine, &rig.digest, &rig.module).unwrap_err();
    assert!(matches!(error, CodeCacheError::Write { .. }), "{error}");
    assert_eq!(rig.entry(), path);
}

#[test]
fn a_hit_is_much_faster_than_compiling() {
    let bytes = guest("json");
    let start = Instant::now();
    let rig = Rig::with(&bytes);
    let compiled = start.elapsed();
    let hits: Vec<_> = (0..20)
        .map(|_| {
            let start = Instant::now();
            assert!(rig.get().is_some());
            start.elapsed()
        })
        .collect();
    let size = fs::metadata(rig.entry()).unwrap().len();
    let best = hits.into_iter().min().expect("twenty hits");
    println!("compiled in {compiled:?}, {size} bytes taken back in {best:?}");
    // Far from what is measured, so that a busy machine passes.
    assert!(best * 10 < compiled, "{best:?} beside {compiled:?}");
}
