//! Finds a file again that was renamed, and the one that was begun after it.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// The name that the file `of` has beside `path`, if it is at least `at` long and its name
/// is that of `path` with something added: so files are called when they are rotated.
pub(super) fn rotated(path: &Path, of: [u64; 2], at: u64) -> Option<PathBuf> {
    let own = path.file_name()?.as_bytes();
    let names = fs::read_dir(path.parent()?).ok()?.flatten();
    let mut rotated = names.filter(|entry| entry.file_name().as_bytes().starts_with(own));
    rotated.find_map(|entry| {
        let there = entry.metadata().ok()?;
        let same = identity(&there) == of && there.is_file() && there.len() >= at;
        same.then(|| entry.path())
    })
}

/// What tells a file from all others: its number, and when it was made where the file system
/// knows that, because the number of one that was removed is given to another.
pub(super) fn identity(file: &fs::Metadata) -> [u64; 2] {
    let made = file.created().ok().and_then(nanos).unwrap_or(0);
    [file.dev().rotate_left(32) ^ file.ino(), made]
}

/// When a file was made and last written, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age {
    made: u64,
    written: u64,
}

impl Age {
    pub(super) fn of_file(file: &fs::Metadata) -> Option<Self> {
        Some(Self { made: nanos(file.created().ok()?)?, written: nanos(file.modified().ok()?)? })
    }

    /// What is known of a file that is gone.
    pub(super) fn of(identity: [u64; 2]) -> Option<Self> {
        let made = identity[1];
        (made > 0).then_some(Self { made, written: made })
    }
}

fn nanos(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos()).ok()
}

/// The oldest file beside `path` that was rotated and begun after one of that age: where a
/// file is rotated twice before it is read to its end, that is the one in the middle.
pub(super) fn next_younger(path: &Path, than: Age) -> Option<PathBuf> {
    let own = path.file_name()?.as_bytes();
    let names = fs::read_dir(path.parent()?).ok()?.flatten();
    let rotated = names.filter_map(|entry| {
        let name = entry.file_name();
        let added = name.as_bytes().strip_prefix(own)?;
        // `.1`, `-20261123`, `.2026-11-23T10`: what else begins with the name is something else.
        let counts = added.iter().all(|b| b.is_ascii_digit() || b".-_:T".contains(b));
        let there = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        let age = Age::of_file(&there)?;
        let younger = age.made > than.made && age.written >= than.written;
        // Times are no finer than some milliseconds, and the one at the path itself is the last.
        (counts && younger).then(|| ((age.made, added.is_empty(), age.written), entry.path()))
    });
    rotated.min().map(|(_, path)| path)
}
