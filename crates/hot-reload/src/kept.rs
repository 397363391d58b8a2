//! Modules that went live, kept by digest.
//!
//! The file that a module came from may change or vanish at any time, and what
//! runs must not depend on it: going back, and starting again, take the module
//! from here. Nothing is trusted for its name: what is read back is held
//! against the digest that it is kept under.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use parking_lot::Mutex;
use reflowd_runtime::Digest;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::read_own_file;

/// The folder of kept modules.
///
/// Its size is bounded, and never at the cost of a module that somebody needs:
/// where those alone fill it, the next one is refused.
#[derive(Debug)]
pub struct Kept {
    folder: PathBuf,
    max: u64,
    /// One module is written at a time: two could make room for themselves by the same look,
    /// or write the same file.
    writing: Mutex<()>,
}

/// Which kept modules are needed, and which are worth their room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// What runs, judges or is gone back to. Never removed.
    pub needed: BTreeSet<Digest>,
    /// The last generations of each actor. The oldest are removed when the room
    /// is needed. What is in neither set is removed as soon as it is noticed.
    pub recent: BTreeSet<Digest>,
}

/// The folder of kept modules cannot be used.
#[derive(Debug, Error)]
#[error("cannot use the folder of kept modules {}", path.display())]
pub struct OpenKeptError {
    /// The folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// A module was not kept, so it must not go live.
#[derive(Debug, Error)]
pub enum KeepError {
    /// The modules that are needed leave no room.
    #[error(
        "no room to keep a module of {size} bytes: {needed} of {max} bytes are needed by what runs; raise `keep.bytes`"
    )]
    NoRoom {
        /// Bytes of the module.
        size: u64,
        /// Bytes that cannot be freed.
        needed: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// The folder cannot be written to.
    #[error("cannot keep the module as {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A kept module cannot be had.
#[derive(Debug, Error)]
pub enum ReadKeptError {
    /// It is not kept.
    #[error("no module is kept under {0}")]
    Missing(Digest),
    /// It cannot be read.
    #[error("cannot read the kept module {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its bytes are not what they were.
    #[error("the kept module {} is damaged; its bytes do not match its name", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// One kept module.
struct Entry {
    digest: Digest,
    size: u64,
    written: SystemTime,
}

impl Kept {
    /// The folder `modules` in the data folder, made where it is missing, of at
    /// most `max` bytes.
    ///
    /// # Errors
    /// The folder cannot be made or listed.
    pub fn open(data: &Path, max: u64) -> Result<Self, OpenKeptError> {
        let kept = Self { folder: data.join("modules"), max, writing: Mutex::default() };
        let failed = |source| OpenKeptError { path: kept.folder.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&kept.folder).map_err(failed)?;
        kept.remove_leftovers().map_err(failed)?;
        Ok(kept)
    }

    /// The kept modules of another process's data folder, to be read and nothing else.
    #[must_use]
    pub fn of(data: &Path) -> Self {
        Self { folder: data.join("modules"), max: 0, writing: Mutex::default() }
    }

    /// Another bound from now on.
    pub fn set_max(&mut self, max: u64) {
        self.max = max;
    }

    /// Keeps a module that is about to go live. When this returns, the module
    /// outlives a loss of power.
    ///
    /// # Errors
    /// There is no room, or the folder cannot be written to. The module must not
    /// go live.
    ///
    /// # Panics
    /// The bytes have another digest.
    pub fn keep(&self, digest: Digest, bytes: &Bytes, claims: &Claims) -> Result<(), KeepError> {
        assert_eq!(digest_of(bytes), digest, "a module is kept under its own digest");
        let _one_at_a_time = self.writing.lock();
        let path = self.path(&digest);
        let failed = |source| KeepError::Write { path: path.clone(), source };
        if self.read(&digest).is_ok() {
            // The newest of the recent ones are the last to go. One that cannot be marked goes
            // too early, which is no reason not to run it.
            let marked = File::options().append(true).open(&path);
            _ = marked.and_then(|file| file.set_modified(SystemTime::now()));
            return Ok(());
        }
        self.make_room(&digest, bytes.len() as u64, claims)?;
        let temporary = self.folder.join(format!(".{digest}.tmp"));
        write_durably(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| File::open(&self.folder)?.sync_all())
            .inspect_err(|_| _ = fs::remove_file(&temporary))
            .map_err(failed)
    }

    /// Whether there is a file for the module. Whether it is good shows when it is read.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The modules that there are files for.
    #[must_use]
    pub fn digests(&self) -> BTreeSet<Digest> {
        // A folder that cannot be listed keeps nothing that could start.
        self.entries().unwrap_or_default().into_iter().map(|entry| entry.digest).collect()
    }

    /// A kept module.
    ///
    /// # Errors
    /// It is not kept, cannot be read, or is damaged.
    pub fn read(&self, digest: &Digest) -> Result<Bytes, ReadKeptError> {
        let path = self.path(digest);
        match read_own_file(&path) {
            Ok(bytes) if digest_of(&bytes) == *digest => Ok(bytes.into()),
            Ok(_) => Err(ReadKeptError::Damaged { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ReadKeptError::Missing(*digest))
            }
            Err(source) => Err(ReadKeptError::Read { path, source }),
        }
    }

    /// Removes what nobody claims.
    ///
    /// # Errors
    /// The folder cannot be listed, or a file in it not be removed.
    pub fn tidy(&self, claims: &Claims) -> Result<(), KeepError> {
        for entry in self.entries()? {
            if !claims.needed.contains(&entry.digest) && !claims.recent.contains(&entry.digest) {
                self.remove(&entry.digest)?;
            }
        }
        Ok(())
    }

    /// Whether [`keep`](Self::keep) would find room for a module, once needed ones of
    /// `coming` bytes have come too. Removes nothing.
    ///
    /// # Errors
    /// There is no room, or the folder cannot be listed.
    pub fn room(
        &self,
        digest: &Digest,
        size: u64,
        needed: &BTreeSet<Digest>,
        coming: u64,
    ) -> Result<(), KeepError> {
        let entries = self.entries()?;
        let stay = |entry: &&Entry| entry.digest != *digest && needed.contains(&entry.digest);
        let needed: u64 = entries.iter().filter(stay).map(|entry| entry.size).sum();
        let needed = needed.saturating_add(coming);
        if needed.saturating_add(size) > self.max {
            return Err(KeepError::NoRoom { size, needed, max: self.max });
        }
        Ok(())
    }

    /// Frees as much as a module of `size` bytes takes, oldest first.
    fn make_room(&self, digest: &Digest, size: u64, claims: &Claims) -> Result<(), KeepError> {
        // Nothing is removed for a module that will not fit all the same.
        self.room(digest, size, &claims.needed, 0)?;
        // A damaged file of the same name is about to be replaced.
        let mut entries = self.entries()?;
        entries.retain(|entry| entry.digest != *digest);
        let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
        entries.retain(|entry| !claims.needed.contains(&entry.digest));
        entries.sort_by_key(|entry| (claims.recent.contains(&entry.digest), entry.written));
        for entry in entries {
            if claims.recent.contains(&entry.digest) && total.saturating_add(size) <= self.max {
                break;
            }
            self.remove(&entry.digest)?;
            total -= entry.size;
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Entry>, KeepError> {
        let failed = |source| KeepError::Write { path: self.folder.clone(), source };
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(digest) = digest_in(&entry.path()) else { continue };
            // Removed by hand meanwhile: then it takes no room.
            let Ok(metadata) = entry.metadata() else { continue };
            let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            entries.push(Entry { digest, size: metadata.len(), written });
        }
        Ok(entries)
    }

    fn remove(&self, digest: &Digest) -> Result<(), KeepError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(KeepError::Write { path, source }),
        }
    }

    /// Files that a write left behind which did not come to its end.
    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.wasm"))
    }
}

/// The digest that a kept module is named after; other files are left alone.
fn digest_in(path: &Path) -> Option<Digest> {
    let stem =
        path.extension().is_some_and(|extension| extension == "wasm").then(|| path.file_stem());
    stem.flatten()?.to_str()?.parse().ok()
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;

    struct Rig {
        data: TempDir,
        kept: Kept,
        claims: Claims,
    }

    impl Rig {
        fn new(max: u64) -> Self {
            let data = TempDir::new().unwrap();
            let kept = Kept::open(data.path(), max).unwrap();
            Self { data, kept, claims: Claims::default() }
        }

        fn keep(&self, bytes: &'static str) -> Result<(), KeepError> {
            let kept = self.kept.keep(digest_of(bytes.as_bytes()), &bytes.into(), &self.claims);
            if kept.is_ok() {
                // Files written in one tick of the clock have the same age.
                self.kept.age_all();
            }
            kept
        }

        fn has(&self, bytes: &str) -> bool {
            self.kept.read(&digest_of(bytes.as_bytes())).is_ok_and(|read| read == bytes)
        }

        fn file(&self, bytes: &str) -> PathBuf {
            self.kept.path(&digest_of(bytes.as_bytes()))
        }
    }

    impl Kept {
        fn age_all(&self) {
            for entry in self.entries().unwrap() {
                let file = File::options().append(true).open(self.path(&entry.digest)).unwrap();
                file.set_modified(entry.written - Duration::from_secs(60)).unwrap();
            }
        }
    }

    fn set(bytes: &[&str]) -> BTreeSet<Digest> {
        bytes.iter().map(|bytes| digest_of(bytes.as_bytes())).collect()
    }

    #[test]
    fn a_kept_module_is_read_back() {
        let rig = Rig::new(100);
        rig.keep("aaaa").unwrap();
        rig.keep("aaaa").unwrap();
        assert!(rig.has("aaaa"));
        assert!(!rig.has("bbbb"));
        let names: Vec<_> = fs::read_dir(rig.data.path().join("modules")).unwrap().collect();
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn a_damaged_module_is_not_read_and_can_be_kept_anew() {
        let rig = Rig::new(100);
        rig.keep("aaaa").unwrap();
        fs::write(rig.file("aaaa"), "aaab").unwrap();
        let error = rig.kept.read(&digest_of(b"aaaa")).unwrap_err();
        assert!(matches!(error, ReadKeptError::Damaged { .. }), "{error}");
        rig.keep("aaaa").unwrap();
        assert!(rig.has("aaaa"));
    }

    #[test]
    fn the_oldest_recent_module_makes_room() {
        let mut rig = Rig::new(12);
        rig.claims.recent = set(&["aaaa", "bbbb", "cccc"]);
        for bytes in ["aaaa", "bbbb", "cccc"] {
            rig.keep(bytes).unwrap();
        }
        // Used again, so `bbbb` is the oldest now.
        rig.keep("aaaa").unwrap();
        rig.keep("dddd").unwrap();
        assert!(rig.has("aaaa") && !rig.has("bbbb") && rig.has("cccc") && rig.has("dddd"));
    }

    #[test]
    fn a_needed_module_is_never_removed() {
        let mut rig = Rig::new(8);
        rig.claims.needed = set(&["aaaa"]);
        rig.claims.recent = set(&["bbbb"]);
        rig.keep("aaaa").unwrap();
        rig.keep("bbbb").unwrap();
        rig.keep("cccc").unwrap();
        assert!(rig.has("aaaa") && !rig.has("bbbb") && rig.has("cccc"));
    }

    #[test]
    fn no_room_refuses_and_removes_nothing() {
        let mut rig = Rig::new(10);
        rig.claims.needed = set(&["aaaa"]);
        rig.claims.recent = set(&["bbbb"]);
        rig.keep("aaaa").unwrap();
        rig.keep("bbbb").unwrap();
        let error = rig.keep("ccccccc").unwrap_err();
        assert!(matches!(error, KeepError::NoRoom { size: 7, needed: 4, max: 10 }), "{error}");
        assert!(rig.has("aaaa") && rig.has("bbbb"));
    }

    #[test]
    fn what_nobody_claims_goes() {
        let mut rig = Rig::new(100);
        rig.keep("aaaa").unwrap();
        rig.claims.needed = set(&["bbbb"]);
        rig.claims.recent = set(&["cccc"]);
        rig.keep("bbbb").unwrap();
        assert!(!rig.has("aaaa"));
        rig.keep("cccc").unwrap();
        rig.claims.recent.clear();
        rig.kept.tidy(&rig.claims).unwrap();
        assert!(rig.has("bbbb") && !rig.has("cccc"));
    }

    #[test]
    fn leftovers_are_removed_and_other_files_left_alone() {
        let rig = Rig::new(100);
        let modules = rig.data.path().join("modules");
        fs::write(modules.join(".half.tmp"), "x").unwrap();
        fs::write(modules.join("README"), "x").unwrap();
        let kept = Kept::open(rig.data.path(), 100).unwrap();
        kept.tidy(&Claims::default()).unwrap();
        assert!(!modules.join(".half.tmp").exists());
        assert!(modules.join("README").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_written_refuses() {
        let rig = Rig::new(100);
        fs::remove_dir_all(rig.data.path().join("modules")).unwrap();
        let error = rig.kept.keep(digest_of(b"a"), &"a".into(), &rig.claims).unwrap_err();
        assert!(matches!(error, KeepError::Write { .. }), "{error}");
    }
}
