//! One look at the disk: modules and configuration together.
//!
//! A look gives a [`Snapshot`], which says of each file what it is, or why that
//! cannot be said. The second is the more important: a half-written module, a
//! folder that is not mounted and a file that an editor is about to put back
//! must never look like a wish of the operator.
//!
//! The system's word ([`Stamp`]) is asked of every file at every look; a file is
//! read only when that has changed and stood still. So a look at ten thousand
//! files costs ten thousand questions and no reading.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use reflowd_runtime::Digest;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    absence::{Absence, Missing},
    file::{self, Found, ReadFile, Stamp},
    include::{Include, is_temporary},
    snapshot::{Sight, Snapshot, Trouble},
    stranger::Stranger,
};

/// A file is read once more when it has stood still for this long.
///
/// A program that writes through a memory map changes a file's times at its
/// first write and then not again until the system has written the page back,
/// which takes it half a minute. What was read before that may be old.
const REREAD: Duration = Duration::from_secs(60);

/// How much coarser than the clock a file's times may be.
const COARSE: Duration = Duration::from_millis(50);

/// Bytes of new modules that one snapshot carries. What is over is fetched one
/// by one by whoever needs it, so that ten thousand new files fit in memory.
const MAX_BYTES: u64 = 256 << 20;

/// Names read from a folder for each that may count. A folder full of other
/// things is no modules folder, and listing it for ever helps nobody.
const NAMES_PER_ENTRY: usize = 10;

/// How a [`Scanner`] judges what it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// How long a file must have stood still to count.
    pub quiet: Duration,
    /// The largest module, in bytes.
    pub module_size: u64,
    /// The largest configuration file, in bytes.
    pub config_size: u64,
    /// The most files that count in one folder.
    pub entries: usize,
    /// Whether files and folders count that anybody on the machine may write to.
    pub allow_insecure: bool,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(100),
            module_size: 32 << 20,
            config_size: 4 << 20,
            entries: 20_000,
            allow_insecure: false,
        }
    }
}

/// What to look at. All paths are absolute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The watched folder.
    pub modules: PathBuf,
    /// Modules that actors name by path.
    pub paths: BTreeSet<PathBuf>,
    /// Configuration files that must be there.
    pub configs: Vec<PathBuf>,
    /// Further configuration files, where there are any.
    pub includes: Vec<Include>,
    /// Files elsewhere that links among all these lead to, as far as they are known.
    pub targets: BTreeSet<PathBuf>,
}

/// How much to trust earlier looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// Read what has changed by the system's word.
    #[default]
    Changed,
    /// Read everything: somebody has asked, and may know better.
    Everything,
}

/// The time of a look, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For how long things take.
    pub mono: Instant,
    /// For comparing with the times of files.
    pub wall: SystemTime,
}

/// A module could not be read again.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The system does not let us.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is another by now. The next look will say which.
    #[error("{} has changed meanwhile", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// Looks at the disk, remembering what it has seen.
///
/// A look reads files and must not be taken on a thread that others wait for.
#[derive(Debug)]
pub struct Scanner {
    options: ScanOptions,
    files: HashMap<PathBuf, Seen>,
    absence: Absence<PathBuf>,
    devices: HashMap<PathBuf, u64>,
    /// Looks so far, for telling what the last one has come across.
    looks: u64,
}

/// A file as earlier looks have seen it.
#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    /// When it was first seen with this stamp, or when it got it.
    since: Instant,
    /// What it held, and when it was read.
    content: Option<(Content, Instant)>,
    /// The look that came across it last.
    visited: u64,
}

/// What a file holds.
#[derive(Clone, Debug)]
struct Content {
    digest: Digest,
    text: Option<Arc<str>>,
}

/// What kind of file is expected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Module,
    Config,
}

/// One look in progress.
struct Pass<'a> {
    scanner: &'a mut Scanner,
    has: &'a BTreeSet<Digest>,
    depth: Depth,
    now: Moment,
    carried: u64,
    snapshot: Snapshot,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self { mono: Instant::now(), wall: SystemTime::now() }
    }
}

impl Look {
    /// The folders to watch for this, and the files that links lead to.
    #[must_use]
    pub fn roots(&self) -> BTreeSet<PathBuf> {
        let files = self.paths.iter().chain(&self.configs);
        let folders = files.filter_map(|path| path.parent());
        let includes = self.includes.iter().map(Include::folder);
        let targets = self.targets.iter().map(PathBuf::as_path);
        let all = folders.chain(includes).chain([self.modules.as_path()]).chain(targets);
        all.map(Path::to_owned).collect()
    }
}

impl Scanner {
    /// A scanner that has seen nothing yet.
    #[must_use]
    pub fn new(options: ScanOptions) -> Self {
        Self {
            options,
            files: HashMap::new(),
            absence: Absence::new(),
            devices: HashMap::new(),
            looks: 0,
        }
    }

    /// Judges by other rules from now on.
    pub fn set_options(&mut self, options: ScanOptions) {
        self.options = options;
    }

    /// Takes the devices that the folders are on for the right ones: somebody
    /// has said that what is there now is meant.
    pub fn forget_devices(&mut self) {
        self.devices.clear();
    }

    /// One look. `has` are the modules whose bytes are not needed any more.
    pub fn scan(
        &mut self,
        look: &Look,
        has: &BTreeSet<Digest>,
        depth: Depth,
        now: Moment,
    ) -> Snapshot {
        self.looks += 1;
        let mut pass =
            Pass { scanner: self, has, depth, now, carried: 0, snapshot: Snapshot::default() };
        pass.modules(&look.modules);
        for path in &look.paths {
            pass.path(path);
        }
        for path in &look.configs {
            pass.config(path);
        }
        for include in &look.includes {
            pass.include(include);
        }
        let snapshot = pass.snapshot;
        let this = self.looks;
        self.files.retain(|_, seen| seen.visited == this);
        snapshot
    }

    /// Reads a module again whose bytes the snapshot did not carry.
    ///
    /// # Errors
    /// It cannot be read, or holds other bytes by now.
    pub fn fetch(&self, path: &Path, digest: &Digest) -> Result<Bytes, FetchError> {
        let failed = |source| FetchError::Read { path: path.into(), source };
        let changed = || FetchError::Changed { path: path.into() };
        let Found::File { stamp, .. } = file::find(path).map_err(failed)? else {
            return Err(changed());
        };
        if stamp.size() > self.options.module_size {
            return Err(changed());
        }
        match file::read(path, &stamp).map_err(failed)? {
            ReadFile::Whole(bytes) if digest_of(&bytes) == *digest => Ok(bytes),
            ReadFile::Whole(_) | ReadFile::Moving => Err(changed()),
        }
    }
}

impl Pass<'_> {
    /// The watched folder.
    fn modules(&mut self, folder: &Path) {
        match self.list(folder, is_module) {
            Ok(names) => {
                for name in names {
                    let sight = self.known(&folder.join(&name), Kind::Module);
                    if let Some(sight) = sight {
                        self.snapshot.modules.insert(name, map(sight, |content| content.digest));
                    }
                }
            }
            Err(trouble) => {
                for name in self.cannot_tell(folder, is_module) {
                    self.snapshot.modules.insert(name, Sight::Unknown(trouble.clone()));
                }
                self.snapshot.modules_trouble = Some(trouble.clone());
                self.trouble(folder, trouble);
            }
        }
    }

    /// A module that is asked for by path.
    fn path(&mut self, path: &Path) {
        let sight = map(self.asked(path, Kind::Module), |content| content.digest);
        self.snapshot.paths.insert(path.to_owned(), sight);
    }

    /// A configuration file that must be there.
    fn config(&mut self, path: &Path) {
        let sight = match self.asked(path, Kind::Config) {
            Sight::Gone => Sight::Unknown(match self.snapshot.oddities.get(path) {
                Some(what) => Trouble::ConfigOdd(what),
                None => Trouble::ConfigMissing,
            }),
            sight => map(sight, text_of),
        };
        self.snapshot.configs.insert(path.to_owned(), sight);
    }

    /// Configuration files that count where they are there.
    fn include(&mut self, include: &Include) {
        let folder = include.folder();
        match self.list(folder, |name| include.matches(name)) {
            Ok(names) => {
                for path in names.into_iter().map(|name| folder.join(name)) {
                    if self.snapshot.configs.contains_key(&path) {
                        continue;
                    }
                    if let Some(sight) = self.known(&path, Kind::Config) {
                        self.snapshot.configs.insert(path, map(sight, text_of));
                    }
                }
            }
            Err(trouble) => {
                for name in self.cannot_tell(folder, |name| include.matches(name)) {
                    let sight = Sight::Unknown(trouble.clone());
                    self.snapshot.configs.entry(folder.join(name)).or_insert(sight);
                }
                self.trouble(folder, trouble);
            }
        }
    }

    /// The names in `folder` that count, with those that earlier looks have
    /// found there.
    fn list(
        &mut self,
        folder: &Path,
        counts: impl Fn(&OsStr) -> bool,
    ) -> Result<BTreeSet<OsString>, Trouble> {
        let before = self.root(folder)?;
        let max = self.scanner.options.entries;
        let mut names = BTreeSet::new();
        let entries = fs::read_dir(folder).map_err(unreadable)?;
        for (number, entry) in entries.enumerate() {
            let name = entry.map_err(unreadable)?.file_name();
            if counts(&name) {
                names.insert(name);
            }
            if names.len() > max || number > max.saturating_mul(NAMES_PER_ENTRY) {
                return Err(Trouble::TooMany { max });
            }
        }
        // Another folder may have been listed than was examined.
        if self.root(folder)? != before {
            self.again(self.now.mono);
            return Err(Trouble::Moving);
        }
        names.extend(self.remembered(folder, counts));
        Ok(names)
    }

    /// Names in `folder` that earlier looks have found and that are not gone.
    fn remembered(&self, folder: &Path, counts: impl Fn(&OsStr) -> bool) -> Vec<OsString> {
        let files = self.scanner.files.keys().filter(|path| path.parent() == Some(folder));
        files
            .filter_map(|path| path.file_name())
            .filter(|name| counts(name))
            .map(OsStr::to_owned)
            .collect()
    }

    /// `folder` cannot be listed: what was in it is neither there nor gone.
    fn cannot_tell(&mut self, folder: &Path, counts: impl Fn(&OsStr) -> bool) -> Vec<OsString> {
        let names = self.remembered(folder, counts);
        for path in names.iter().map(|name| folder.join(name)) {
            self.present(&path);
        }
        names
    }

    /// Device and inode of a folder that may be looked into.
    fn root(&mut self, folder: &Path) -> Result<(u64, u64), Trouble> {
        let metadata = match fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => metadata,
            Ok(_) => return Err(Trouble::NotAFolder),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Trouble::FolderMissing);
            }
            Err(error) => return Err(unreadable(error)),
        };
        let device = *self.scanner.devices.entry(folder.to_owned()).or_insert(metadata.dev());
        if device != metadata.dev() {
            return Err(Trouble::OtherDevice);
        }
        if !self.scanner.options.allow_insecure {
            secure(folder)?;
        }
        Ok((metadata.dev(), metadata.ino()))
    }

    /// What this look says of a file that was asked for by its path.
    fn asked(&mut self, path: &Path, kind: Kind) -> Sight<Content> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        match self.root(folder) {
            // A file of that folder may have been looked at already.
            Ok(_) => self.known(path, kind).unwrap_or(Sight::Gone),
            Err(trouble) => {
                self.present(path);
                self.trouble(folder, trouble.clone());
                Sight::Unknown(trouble)
            }
        }
    }

    /// What this look says of a file in a folder that can be read; nothing, if
    /// the name never led to a file.
    fn known(&mut self, path: &Path, kind: Kind) -> Option<Sight<Content>> {
        let found = file::find(path);
        if let Ok(Found::Oddity(oddity)) = found {
            self.snapshot.oddities.insert(path.to_owned(), oddity.words());
        }
        match found {
            Ok(Found::File { stamp, stranger }) => {
                self.present(path);
                self.snapshot.targets.extend(file::target(path));
                if let Some(stranger) = stranger.filter(|_| !self.scanner.options.allow_insecure) {
                    let path = path.to_owned();
                    return Some(Sight::Unknown(match stranger {
                        Stranger::Anybody => Trouble::Insecure(path),
                        Stranger::User(owner) => Trouble::Foreign { path, owner },
                    }));
                }
                Some(self.settled(path, kind, stamp))
            }
            Ok(Found::Nothing | Found::Oddity(_)) => self.missing(path),
            Err(error) => {
                self.present(path);
                Some(Sight::Unknown(unreadable(error)))
            }
        }
    }

    /// The file is there, or may be: what is known of it stays known.
    fn present(&mut self, path: &Path) {
        self.scanner.absence.forget(path);
        let this = self.scanner.looks;
        if let Some(seen) = self.scanner.files.get_mut(path) {
            seen.visited = this;
        }
    }

    /// A file that was there is not, in a folder that can be read.
    fn missing(&mut self, path: &Path) -> Option<Sight<Content>> {
        let this = self.scanner.looks;
        self.scanner.files.get_mut(path)?.visited = this;
        Some(match self.scanner.absence.miss(path.to_owned(), self.now.mono) {
            Missing::Until(at) => {
                self.again(at);
                Sight::Missing
            }
            Missing::Gone => {
                self.scanner.absence.forget(path);
                self.scanner.files.remove(path);
                Sight::Gone
            }
        })
    }

    /// The content of a file, once it has stood still.
    fn settled(&mut self, path: &Path, kind: Kind, stamp: Stamp) -> Sight<Content> {
        let now = self.now.mono;
        let max = match kind {
            Kind::Module => self.scanner.options.module_size,
            Kind::Config => self.scanner.options.config_size,
        };
        let since = match self.scanner.files.get(path) {
            Some(seen) if seen.stamp == stamp => seen.since,
            _ => {
                let since = self.first_seen(&stamp);
                let seen = Seen { stamp, since, content: None, visited: self.scanner.looks };
                self.scanner.files.insert(path.to_owned(), seen);
                since
            }
        };
        let still = since + self.scanner.options.quiet;
        if now < still {
            self.again(still);
            return Sight::Unsettled;
        }
        if stamp.size() > max {
            return Sight::Unknown(Trouble::TooLarge { size: stamp.size(), max });
        }
        if let Some(content) = self.remembered_content(path, kind) {
            return Sight::Present(content);
        }
        match self.content(path, kind, &stamp) {
            Ok(content) => {
                let seen = self.scanner.files.get_mut(path).expect("it was inserted above");
                seen.content = Some((content.clone(), now));
                Sight::Present(content)
            }
            Err(Some(trouble)) => Sight::Unknown(trouble),
            Err(None) => {
                // It moved between two questions: the next look starts over.
                self.again(now + self.scanner.options.quiet);
                let seen = self.scanner.files.get_mut(path).expect("it was inserted above");
                seen.since = now;
                Sight::Unsettled
            }
        }
    }

    /// Since when a file that is first seen with this stamp has had it.
    ///
    /// From now on, as far as we know: clocks jump, and a server's clock is not
    /// ours. Only at the very first look are a file's own times believed, so
    /// that a start does not wait for files that have been there for weeks.
    fn first_seen(&self, stamp: &Stamp) -> Instant {
        let Moment { mono, wall } = self.now;
        let age = stamp.age(wall).filter(|_| self.scanner.looks == 1).unwrap_or_default();
        mono.checked_sub(age.saturating_sub(COARSE).min(REREAD)).unwrap_or(mono)
    }

    /// What was read from a file whose stamp has not changed, if that will do.
    fn remembered_content(&self, path: &Path, kind: Kind) -> Option<Content> {
        let seen = self.scanner.files.get(path)?;
        let (content, read) = seen.content.as_ref()?;
        let old_enough = *read >= seen.since + REREAD || self.now.mono < seen.since + REREAD;
        let same_kind = (kind == Kind::Config) == content.text.is_some();
        (self.depth == Depth::Changed && old_enough && same_kind).then(|| content.clone())
    }

    /// Reads a file. `None` is the trouble of a file that would not stand still.
    fn content(
        &mut self,
        path: &Path,
        kind: Kind,
        stamp: &Stamp,
    ) -> Result<Content, Option<Trouble>> {
        let bytes = match file::read(path, stamp) {
            Ok(ReadFile::Whole(bytes)) => bytes,
            Ok(ReadFile::Moving) => return Err(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(None),
            Err(error) => return Err(Some(unreadable(error))),
        };
        let digest = digest_of(&bytes);
        let text = match kind {
            Kind::Module => None,
            Kind::Config => {
                let text = std::str::from_utf8(&bytes).map_err(|_| Some(Trouble::NotText))?;
                Some(Arc::from(text))
            }
        };
        if kind == Kind::Module && !self.has.contains(&digest) {
            let size = bytes.len() as u64;
            if !self.snapshot.bytes.contains_key(&digest) && self.carried + size <= MAX_BYTES {
                self.carried += size;
                self.snapshot.bytes.insert(digest, bytes);
            }
        }
        Ok(Content { digest, text })
    }

    fn trouble(&mut self, folder: &Path, trouble: Trouble) {
        self.snapshot.troubles.insert(folder.to_owned(), trouble);
    }

    fn again(&mut self, at: Instant) {
        let again = &mut self.snapshot.again;
        *again = Some(again.map_or(at, |before| before.min(at)));
    }
}

/// Whether a file of that name in the watched folder is a module.
fn is_module(name: &OsStr) -> bool {
    name.as_bytes().strip_suffix(b".wasm").is_some_and(|stem| !stem.is_empty())
        && !is_temporary(name)
}

/// Refuses a folder into which anybody on the machine could put a file, or that
/// anybody could replace. Others cannot replace what is in a sticky folder.
fn secure(folder: &Path) -> Result<(), Trouble> {
    /// Others may write.
    const OTHERS_WRITE: u32 = 0o002;
    /// Only its owner may remove or rename a file.
    const STICKY: u32 = 0o1000;
    let real = fs::canonicalize(folder).map_err(unreadable)?;
    for (height, folder) in real.ancestors().enumerate() {
        let mode = fs::metadata(folder).map_err(unreadable)?.mode();
        let sticky_parent = height > 0 && mode & STICKY != 0;
        if mode & OTHERS_WRITE != 0 && !sticky_parent {
            return Err(Trouble::Insecure(folder.to_owned()));
        }
    }
    Ok(())
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

fn text_of(content: Content) -> Arc<str> {
    content.text.expect("configuration files are read as text")
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn unreadable(error: io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::NotFound => Trouble::FolderMissing,
        _ => Trouble::Unreadable(error.to_string()),
    }
}

fn map<T, U>(sight: Sight<T>, with: impl FnOnce(T) -> U) -> Sight<U> {
    match sight {
        Sight::Present(content) => Sight::Present(with(content)),
        Sight::Unsettled => Sight::Unsettled,
        Sight::Missing => Sight::Missing,
        Sight::Gone => Sight::Gone,
        Sight::Unknown(trouble) => Sight::Unknown(trouble),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// One module, seen and settled.
    fn settled() -> (TempDir, Scanner, Look, Moment) {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("a.wasm"), "old").unwrap();
        let look = Look { modules: folder.path().into(), ..Look::default() };
        let mut scanner = Scanner::new(ScanOptions::default());
        let mut now = Moment::now();
        scanner.scan(&look, &BTreeSet::new(), Depth::Changed, now);
        now.mono += Duration::from_secs(1);
        let snapshot = scanner.scan(&look, &BTreeSet::new(), Depth::Changed, now);
        assert_eq!(snapshot.stem("a"), Sight::Present(digest_of(b"old")));
        (folder, scanner, look, now)
    }

    /// Makes the scanner remember other content than the file has, as if the
    /// file had been written through a memory map after it was read.
    fn misremember(scanner: &mut Scanner) {
        let seen = scanner.files.values_mut().next().expect("there is one file");
        seen.content.as_mut().expect("it was read").0.digest = Digest::new([0; 32]);
    }

    #[test]
    fn a_file_is_read_once_more_when_it_has_stood_still_for_long() {
        let (_folder, mut scanner, look, mut now) = settled();
        misremember(&mut scanner);
        let mut sight = |after: Duration| {
            now.mono += after;
            scanner.scan(&look, &BTreeSet::new(), Depth::Changed, now).stem("a")
        };
        let (wrong, right) = (Digest::new([0; 32]), digest_of(b"old"));
        assert_eq!(sight(Duration::from_secs(30)), Sight::Present(wrong));
        assert_eq!(sight(Duration::from_secs(30)), Sight::Present(right));
        misremember(&mut scanner);
        now.mono += Duration::from_secs(3600);
        let snapshot = scanner.scan(&look, &BTreeSet::new(), Depth::Changed, now);
        assert_eq!(snapshot.stem("a"), Sight::Present(wrong), "it is read once more, not for ever");
    }

    #[test]
    fn a_look_on_demand_reads_everything() {
        let (_folder, mut scanner, look, now) = settled();
        misremember(&mut scanner);
        let snapshot = scanner.scan(&look, &BTreeSet::new(), Depth::Everything, now);
        assert_eq!(snapshot.stem("a"), Sight::Present(digest_of(b"old")));
    }

    #[test]
    fn a_folder_on_another_device_says_nothing() {
        let (folder, mut scanner, look, now) = settled();
        let device = scanner.devices.get_mut(folder.path()).expect("it was looked at");
        *device += 1;
        fs::remove_file(folder.path().join("a.wasm")).unwrap();
        let snapshot = scanner.scan(&look, &BTreeSet::new(), Depth::Changed, now);
        assert_eq!(snapshot.stem("a"), Sight::Unknown(Trouble::OtherDevice));
        assert_eq!(snapshot.modules_trouble, Some(Trouble::OtherDevice));
        scanner.forget_devices();
        let snapshot = scanner.scan(&look, &BTreeSet::new(), Depth::Changed, now);
        assert_eq!(snapshot.stem("a"), Sight::Missing);
    }
}
