//! Untrusted users with access to files that decide what the daemon runs.
//!
//! A folder trusts its owner, and its group if the group may write to it. The owner of a file can
//! change it at any time, so it must be one of these, or root, or the daemon's own user.

use std::{
    fmt,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::{fs::Mode, process::geteuid};

/// The user who may change everything anyway.
const ROOT: u32 = 0;

/// A user whom the folder does not trust and who could change a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// Everybody: the file is world-writable.
    Anybody,
    /// The owner of the file, by user id.
    User(u32),
}

impl Stranger {
    /// The stranger who could change the file at `path`, if both exist.
    #[must_use]
    pub fn to(path: &Path) -> Option<Self> {
        of(path, &fs::metadata(path).ok()?)
    }
}

/// Displays as the problem with the file, and its remedy.
impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => {
                f.write_str("may be written to by anybody; take away the permission (chmod o-w)")
            }
            Self::User(owner) => write!(
                f,
                "belongs to user {owner}, who is not root, the daemon's user or the owner of its \
                 folder; give it to one of them (chown), or set `allow_insecure_dir = true`"
            ),
        }
    }
}

/// The stranger who could change the file at `path`, whose metadata is `file`.
pub(crate) fn of(path: &Path, file: &Metadata) -> Option<Stranger> {
    if file.mode() & Mode::WOTH.bits() != 0 {
        return Some(Stranger::Anybody);
    }
    // A folder that has vanished meanwhile is reported elsewhere.
    let folder = || fs::metadata(path.parent()?).ok().map(|folder| (folder.uid(), folder.mode()));
    let us = geteuid().as_raw();
    is_foreign(file.uid(), us, folder).then(|| Stranger::User(file.uid()))
}

/// Whether the folder does not trust the file's owner. `folder` returns the folder's owner and
/// mode, and is called only if they matter.
fn is_foreign(owner: u32, us: u32, folder: impl FnOnce() -> Option<(u32, u32)>) -> bool {
    if owner == ROOT || owner == us {
        return false;
    }
    folder()
        .is_some_and(|(folder_owner, mode)| owner != folder_owner && mode & Mode::WGRP.bits() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_root_s_ours_or_of_somebody_whom_its_folder_trusts() {
        const US: u32 = 990;
        const DEPLOY: u32 = 1000;
        const THIRD: u32 = 1001;
        let foreign = |owner, folder| is_foreign(owner, US, || Some(folder));
        for trusted in [ROOT, US, DEPLOY] {
            assert!(!foreign(trusted, (DEPLOY, 0o755)), "{trusted}");
        }
        assert!(foreign(THIRD, (DEPLOY, 0o755)));
        assert!(foreign(DEPLOY, (ROOT, 0o755)) && foreign(DEPLOY, (US, 0o700)));
        // Everybody in the group may put files there, and then owns them.
        assert!(!foreign(THIRD, (DEPLOY, 0o775)) && !foreign(THIRD, (ROOT, 0o2770)));
        assert!(!is_foreign(THIRD, US, || None));
    }
}
