//! The configuration files of one folder that fit a pattern.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use globset::{Glob, GlobSet};
use thiserror::Error;

/// Bytes of a pattern. A name has 255 at most, and a pattern may list some.
const MAX_PATTERN: usize = 1_000;
/// Bytes that are shown of a pattern that is too long.
const SHOWN: usize = 60;

/// A folder, and which of its files count: `flows/*.toml`.
///
/// Only the file's name may have wildcards, because each folder is watched.
#[derive(Clone, Debug)]
pub struct Include {
    pub(crate) folder: PathBuf,
    /// The pattern for the name, and the same made ready.
    pattern: String,
    name: GlobSet,
}

/// Why a pattern cannot be an include.
#[derive(Debug, Error)]
pub enum IncludeError {
    /// A folder has wildcards.
    #[error("`{0}` has a wildcard in a folder; only the file's name may have one")]
    Folder(String),
    /// It is out of proportion.
    #[error("`{0}…` has more than {MAX_PATTERN} bytes; split it into several patterns")]
    TooLong(String),
    /// It is no pattern.
    #[error("`{pattern}` is no pattern")]
    Pattern {
        /// What was written.
        pattern: String,
        /// What is wrong with it.
        source: globset::Error,
    },
}

impl Include {
    /// The files that fit `pattern`, which is relative to the folder `base`.
    ///
    /// # Errors
    /// The pattern cannot be an include.
    pub fn new(base: &Path, pattern: &str) -> Result<Self, IncludeError> {
        if pattern.len() > MAX_PATTERN {
            let cut = pattern.floor_char_boundary(SHOWN);
            return Err(IncludeError::TooLong(pattern[..cut].into()));
        }
        let wrong = |source| IncludeError::Pattern { pattern: pattern.into(), source };
        let (folder, name) = pattern.rsplit_once('/').unwrap_or((".", pattern));
        if folder.contains(['*', '?', '[', '{']) {
            return Err(IncludeError::Folder(pattern.into()));
        }
        // `/*.toml` names the root folder.
        let folder = if folder.is_empty() { "/" } else { folder };
        let folder = base.join(folder).components().collect();
        let glob = Glob::new(name).map_err(wrong)?;
        // A matcher of its own would panic on what is too large or too deep; a set says so.
        let set = GlobSet::builder().add(glob).build().map_err(wrong)?;
        Ok(Self { folder, pattern: name.into(), name: set })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a file of that name counts. Editors' and mirrors' own do not.
    #[must_use]
    pub fn matches(&self, name: &OsStr) -> bool {
        !is_temporary(name) && self.name.is_match(name)
    }
}

impl PartialEq for Include {
    fn eq(&self, other: &Self) -> bool {
        self.folder == other.folder && self.pattern == other.pattern
    }
}

impl Eq for Include {}

/// Whether programs give such names to what is not meant to be seen:
/// `.x.wasm.Ab12` by rsync, `.#x` and `x~` by editors.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") || name.as_bytes().ends_with(b"~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, fits: bool) {
        let include = Include::new(Path::new("/etc/reflowd"), pattern).unwrap();
        assert_eq!(include.matches(OsStr::new(name)), fits);
    }

    #[test]
    fn a_pattern_is_about_the_files_of_one_folder() {
        check("flows/*.toml", "a.toml", true);
        check("*.toml", "a.toml", true);
        check("flows/a.toml", "a.toml", true);
        check("flows/a.toml", "b.toml", false);
        check("flows/*.toml", "a.toml~", false);
        check("flows/*", "a.toml~", false);
        check("flows/*.toml", ".a.toml", false);
        check("flows/*.toml", ".#a.toml", false);
    }

    #[test]
    fn a_pattern_is_relative_to_its_file() {
        let folder = |pattern| Include::new(Path::new("/etc/reflowd"), pattern).unwrap().folder;
        assert_eq!(folder("flows/*.toml"), Path::new("/etc/reflowd/flows"));
        assert_eq!(folder("./*.toml"), Path::new("/etc/reflowd"));
        assert_eq!(folder("*.toml"), Path::new("/etc/reflowd"));
        assert_eq!(folder("/srv/*.toml"), Path::new("/srv"));
        assert_eq!(folder("/*.toml"), Path::new("/"));
    }

    #[test]
    fn a_folder_has_no_wildcards() {
        let error = |pattern| Include::new(Path::new("/"), pattern).unwrap_err();
        assert!(matches!(error("*/a.toml"), IncludeError::Folder(_)));
        assert!(matches!(error("a/[.toml"), IncludeError::Pattern { .. }));
    }

    #[test]
    fn a_pattern_out_of_proportion_is_an_error_and_no_panic() {
        let error = |pattern: String| Include::new(Path::new("/"), &pattern).unwrap_err();
        let nested = |n: usize| format!("{}{}.toml", "{a".repeat(n), "}".repeat(n));
        assert!(matches!(error(nested(250)), IncludeError::Pattern { .. }));
        assert!(matches!(error(nested(330)), IncludeError::Pattern { .. }));
        assert!(matches!(error(nested(500)), IncludeError::TooLong(_)));
        check(&nested(3), "aaa.toml", true);
        check("{a,{b,c}}.toml", "c.toml", true);
    }
}
