//! Compiled code on disk, so that a module is compiled once and not at every start.
//!
//! An entry is one file. Its name holds the digest of the module, a hash of what
//! the compiler was told, and the checksum of the content; publishing it is one
//! rename, so content and checksum cannot disagree but by damage. The cache is only
//! ever a shortcut: whatever is odd about an entry, the answer is that there is
//! none, and the module is compiled again.
//!
//! Whoever can write as our user can make a file that passes every check and holds
//! any machine code. So can they replace the daemon; the folder is as private as
//! its key files.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use reflowd_runtime::Digest;
use rustix::{fs::OFlags, process::geteuid};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tracing::{info, warn};
use wasmtime::{Engine, Module};

/// Bytes that all entries may take: the code of a thousand modules of some size.
const CAPACITY: u64 = 1 << 30;
/// What the name of an entry ends with.
const ENTRY: &str = ".code";
/// What the name of a file that is being written ends with.
const UNFINISHED: &str = ".unfinished";
/// The age at which an unfinished file has no writer any more.
const ABANDONED: Duration = Duration::from_secs(600);
/// Only we read and write an entry.
const ENTRY_MODE: u32 = 0o600;
/// Only we look into the folder.
const FOLDER_MODE: u32 = 0o700;
/// Permission to write for the group and for all others.
const OTHERS_WRITE: u32 = 0o022;

/// The folder of compiled code.
///
/// What comes out of it went in through [`CodeCache::put`] of the same user, with
/// the same version of the compiler and the same settings.
#[derive(Debug)]
pub(crate) struct CodeCache {
    folder: PathBuf,
    capacity: u64,
}

/// Why a folder does not serve as a cache, or code was not kept in it.
#[derive(Debug, Error)]
pub enum CodeCacheError {
    /// There is no such folder, and it cannot be made or looked into.
    #[error("cannot use {} for compiled code; give a folder that this user can write", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path leads to something else.
    #[error("{} is no folder; give another for compiled code", .0.display())]
    NoFolder(PathBuf),
    /// It belongs to someone who could put other code there.
    #[error(
        "{} for compiled code belongs to user {owner}; `chown` it to this one, or give another", .path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// The number of the user that owns it.
        owner: u32,
    },
    /// Others could put other code there.
    #[error("others can write {} for compiled code (mode {mode:o}); `chmod 700` it", .path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The compiler cannot write its code down.
    #[error("the compiled code has no form on disk: {0}")]
    Serialize(String),
    /// The entry cannot be written.
    #[error("cannot write compiled code to {}", .path.display())]
    Write {
        /// The entry.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl CodeCache {
    /// Opens the cache in `folder`, which is made if it is not there, and clears
    /// away what writers have left unfinished.
    ///
    /// # Errors
    /// The folder is not private to this user, or cannot be used.
    pub(crate) fn open(folder: impl Into<PathBuf>) -> Result<Self, CodeCacheError> {
        Self::with_capacity(folder.into(), CAPACITY)
    }

    fn with_capacity(folder: PathBuf, capacity: u64) -> Result<Self, CodeCacheError> {
        let unusable = |source| CodeCacheError::Folder { path: folder.clone(), source };
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).map_err(unusable)?;
        }
        match DirBuilder::new().mode(FOLDER_MODE).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(unusable(error));
            }
            _ => {}
        }
        let found = fs::metadata(&folder).map_err(unusable)?;
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        if !found.is_dir() {
            return Err(CodeCacheError::NoFolder(folder));
        }
        if owner != geteuid().as_raw() {
            return Err(CodeCacheError::Foreign { path: folder, owner });
        }
        if mode & OTHERS_WRITE != 0 {
            return Err(CodeCacheError::Open { path: folder, mode });
        }
        let cache = Self { folder, capacity };
        cache.clear_unfinished().map_err(|source| {
            let path = cache.folder.clone();
            CodeCacheError::Folder { path, source }
        })?;
        Ok(cache)
    }

    /// The compiled code of the module with that digest, for that engine.
    ///
    /// An entry that is damaged, that others could have written or that the engine
    /// does not take is removed.
    pub(crate) fn get(&self, engine: &Engine, digest: &Digest) -> Option<Module> {
        let start = entry_start(engine, digest);
        let names = self.names().ok()?;
        names
            .iter()
            .filter_map(|name| {
                let checksum = name.strip_prefix(&start)?.strip_suffix(ENTRY)?;
                Some((self.folder.join(name), checksum))
            })
            .find_map(|(path, checksum)| {
                let module = Checked::read(&path, checksum, self.capacity)
                    .and_then(|checked| checked.revive(engine).map_err(Distrust::Code));
                module.map_err(|why| discard(&path, &why)).ok()
            })
    }

    /// Keeps the compiled code of a module. The oldest entries make room for it.
    ///
    /// Code that is larger than the whole cache is not kept.
    ///
    /// # Errors
    /// The code cannot be written; the cache is as it was.
    pub(crate) fn put(
        &self,
        engine: &Engine,
        digest: &Digest,
        module: &Module,
    ) -> Result<(), CodeCacheError> {
        let code = module.serialize().map_err(|e| CodeCacheError::Serialize(e.to_string()))?;
        if code.len() as u64 > self.capacity {
            info!(%digest, bytes = code.len(), "compiled code is larger than its cache");
            return Ok(());
        }
        let name = format!("{}{}{ENTRY}", entry_start(engine, digest), checksum(&code));
        let path = self.folder.join(&name);
        self.publish(&path, &code).map_err(|source| CodeCacheError::Write { path, source })?;
        self.make_room(&name);
        Ok(())
    }

    fn publish(&self, path: &Path, code: &[u8]) -> io::Result<()> {
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        let turn = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.folder.join(format!("{}-{turn}{UNFINISHED}", std::process::id()));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(ENTRY_MODE)
                .open(&unfinished)?;
            // Whatever the umask has taken away.
            file.set_permissions(fs::Permissions::from_mode(ENTRY_MODE))?;
            file.write_all(code)?;
            file.sync_all()?;
            fs::rename(&unfinished, path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().inspect_err(|_| _ = fs::remove_file(&unfinished))
    }

    /// Removes the entries that were used longest ago until the others fit, but never `newest`.
    fn make_room(&self, newest: &str) {
        let names = self.names().unwrap_or_default();
        let mut entries: Vec<_> = names
            .into_iter()
            .filter(|name| name.ends_with(ENTRY))
            .filter_map(|name| {
                let found = fs::symlink_metadata(self.folder.join(&name)).ok()?;
                Some(Entry { used: found.modified().ok()?, size: found.len(), name })
            })
            .collect();
        for name in over_capacity(&mut entries, newest, self.capacity) {
            let path = self.folder.join(name);
            if let Err(error) = fs::remove_file(&path) {
                warn!(path = %path.display(), %error, "cannot remove old compiled code");
            }
        }
    }

    fn clear_unfinished(&self) -> io::Result<()> {
        let now = SystemTime::now();
        for name in self.names()?.iter().filter(|name| name.ends_with(UNFINISHED)) {
            let path = self.folder.join(name);
            // Gone in the meantime: its writer has finished.
            let Ok(written) = fs::symlink_metadata(&path).and_then(|found| found.modified()) else {
                continue;
            };
            if now.duration_since(written).is_ok_and(|age| age >= ABANDONED) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The names in the folder. All of ours are UTF-8.
    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.folder)?
            .map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()))
            .collect()
    }
}

struct Entry {
    used: SystemTime,
    size: u64,
    name: String,
}

/// The entries that must go for the others to fit into `capacity` bytes.
fn over_capacity<'a>(entries: &'a mut [Entry], newest: &str, capacity: u64) -> Vec<&'a str> {
    let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
    entries.sort_by_key(|entry| entry.used);
    let mut gone = Vec::new();
    for entry in entries.iter().filter(|entry| entry.name != newest) {
        if total <= capacity {
            break;
        }
        total -= entry.size;
        gone.push(&*entry.name);
    }
    gone
}

/// What the names of a module's entries for that engine begin with.
fn entry_start(engine: &Engine, digest: &Digest) -> String {
    // The same in every process. A collision costs nothing: the engine compares
    // version and settings again, in full. Ours is among them, since it stands for
    // the rules by which modules are checked before they are compiled.
    let mut settings = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut settings);
    engine.precompile_compatibility_hash().hash(&mut settings);
    format!("{digest}-{:016x}-", settings.finish())
}

fn checksum(code: &[u8]) -> String {
    Digest::new(Sha256::digest(code).into()).to_string()
}

/// Why an entry is not used.
#[derive(Debug, Error)]
enum Distrust {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("it is no file of this user with mode 600")]
    Foreign,
    #[error("it has {0} bytes, more than the cache holds")]
    Size(u64),
    #[error("it is damaged")]
    Damaged,
    #[error("the compiler does not take it: {0}")]
    Code(wasmtime::Error),
}

fn discard(path: &Path, why: &Distrust) {
    // A symbolic link goes, and what it leads to stays.
    let removed = fs::remove_file(path).is_ok();
    warn!(path = %path.display(), %why, removed, "compiled code is not used; compiling again");
}

/// Code whose file only we can write, and that is whole.
///
/// Held in memory: a file could change, or shrink under a mapping, after it has
/// been checked. What was checked is what runs.
struct Checked(Vec<u8>);

impl Checked {
    fn read(path: &Path, expected: &str, max: u64) -> Result<Self, Distrust> {
        // Neither follows a link nor waits for the writer of a FIFO.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let found = file.metadata()?;
        let ours = found.uid() == geteuid().as_raw() && found.mode() & 0o7777 == ENTRY_MODE;
        if !(found.is_file() && ours) {
            return Err(Distrust::Foreign);
        }
        let size = found.len();
        if size > max {
            return Err(Distrust::Size(size));
        }
        let mut code = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        // One byte more than there was tells a file that grows.
        (&file).take(size + 1).read_to_end(&mut code)?;
        if checksum(&code) != expected {
            return Err(Distrust::Damaged);
        }
        // The entries used last stay longest. That it could not be noted harms none.
        _ = file.set_modified(SystemTime::now());
        Ok(Self(code))
    }

    #[expect(
        unsafe_code,
        reason = "running code that was compiled earlier is the point of a cache"
    )]
    fn revive(&self, engine: &Engine) -> wasmtime::Result<Module> {
        // SAFETY: the bytes must be what `Module::serialize` gave, of any version
        // and settings, for the engine compares those itself. They are: only `put`
        // writes entries, with the checksum of what it was given in the name, and
        // these bytes have that checksum and come from a regular file that nobody
        // but this user could write, in a folder where nobody else could put it.
        // They are our copy, so nothing changes them later. What remains is trust in
        // whoever can write as this user.
        unsafe { Module::deserialize(engine, &self.0) }
    }
}

#[cfg(test)]
mod tests;
