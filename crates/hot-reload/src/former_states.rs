//! States from before a migration, kept by the SHA-256 of their text.
//!
//! What a generation has left is understood by no module that migrates it, so going back
//! needs the state from before as much as the module. A file never changes, and its name
//! is its checksum: what is read back is what was put there, or is not used.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use reflowd_runtime::{Digest, State};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::read_own_file;

/// The suffix of the files.
const SUFFIX: &str = ".json";

/// The folder of such states. Each actor has at most as many as generations of it are
/// kept, of `state_size` each.
#[derive(Clone, Debug)]
pub struct FormerStates {
    folder: PathBuf,
}

/// The folder cannot be used.
#[derive(Debug, Error)]
#[error("cannot use the folder of former states {}", path.display())]
pub struct OpenFormerStatesError {
    /// The folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// A former state cannot be read.
#[derive(Debug, Error)]
pub enum ReadFormerStateError {
    /// Its file is gone or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its file is not what was written.
    #[error("{} is damaged; its bytes do not match its name", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl FormerStates {
    /// The folder `former-states` in the data folder, made where it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(data: &Path) -> Result<Self, OpenFormerStatesError> {
        let folder = data.join("former-states");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| OpenFormerStatesError { path: folder.clone(), source })?;
        Ok(Self { folder })
    }

    /// Keeps a state. When this returns, it outlives a loss of power. Blocks.
    ///
    /// # Errors
    /// The folder does not take it.
    pub fn keep(&self, state: &State) -> io::Result<Digest> {
        let digest = Digest::new(Sha256::digest(state.text()).into());
        if self.read(&digest).is_ok() {
            return Ok(digest);
        }
        let unfinished = self.folder.join(".new");
        let mut open = OpenOptions::new();
        let mut file =
            open.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(state.text())?;
        file.sync_all()?;
        fs::rename(&unfinished, self.path(&digest))?;
        File::open(&self.folder)?.sync_all()?;
        Ok(digest)
    }

    /// A state that was kept. Blocks.
    ///
    /// # Errors
    /// It is gone, or not what it was.
    pub fn read(&self, digest: &Digest) -> Result<State, ReadFormerStateError> {
        let path = self.path(digest);
        let text = match read_own_file(&path) {
            Ok(text) => text,
            Err(source) => return Err(ReadFormerStateError::Read { path, source }),
        };
        if Digest::new(Sha256::digest(&text).into()) != *digest {
            return Err(ReadFormerStateError::Damaged { path });
        }
        State::kept(text).map_err(|_| ReadFormerStateError::Damaged { path })
    }

    /// Removes all but those. Blocks.
    pub fn retain(&self, needed: &BTreeSet<Digest>) {
        // Files that cannot be listed or removed stay until the next attempt.
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok());
            if digest.is_some_and(|digest| !needed.contains(&digest)) {
                _ = fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}{SUFFIX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> (tempfile::TempDir, FormerStates, Digest) {
        let data = tempfile::tempdir().unwrap();
        let states = FormerStates::open(data.path()).unwrap();
        let digest = states.keep(&State::new(r#"{"n":1}"#).unwrap()).unwrap();
        (data, states, digest)
    }

    #[test]
    fn what_was_kept_can_be_had_until_nobody_needs_it() {
        let (_data, states, digest) = kept();
        let other = states.keep(&State::new(r#"{"n":2}"#).unwrap()).unwrap();
        assert_eq!(states.read(&digest).unwrap().text(), r#"{"n":1}"#);
        states.retain(&[other].into());
        assert!(matches!(states.read(&digest), Err(ReadFormerStateError::Read { .. })));
        states.read(&other).unwrap();
    }

    #[test]
    fn no_bit_of_it_can_change_unseen_and_a_damaged_one_is_written_anew() {
        let (_data, states, digest) = kept();
        let whole = fs::read(states.path(&digest)).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut text = whole.clone();
            text[bit / 8] ^= 1 << (bit % 8);
            fs::write(states.path(&digest), text).unwrap();
            let read = states.read(&digest);
            assert!(matches!(read, Err(ReadFormerStateError::Damaged { .. })), "bit {bit}");
        }
        states.keep(&State::new(r#"{"n":1}"#).unwrap()).unwrap();
        states.read(&digest).unwrap();
    }
}
