//! Finds a file that was renamed or copied, and the file that was begun after it.
//!
//! Everything here reads folders and blocks.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use reflowd_runtime::Position;

use super::{
    identity::{Age, identity, is, is_marked, may_be},
    opened::Opened,
};

/// Names searched in one folder. One with more is not a folder of logs, and searching it would hold
/// up the reader.
const MOST_NAMES: usize = 100_000;

/// Suffixes of compressed files.
const COMPRESSED: [&str; 7] = [".gz", ".xz", ".zst", ".bz2", ".lz4", ".lzma", ".Z"];

/// A file beside the log whose name begins with that of the log.
struct Sibling {
    path: PathBuf,
    /// The rest of its name.
    added: Vec<u8>,
    metadata: fs::Metadata,
}

impl Sibling {
    /// Whether that is how rotated files are named: `.1`, `-20261123`, `.2026-11-23T10`.
    fn is_rotated(&self) -> bool {
        self.added.iter().all(|b| b.is_ascii_digit() || b".-_:T".contains(b))
    }
}

/// The paths under which the file may be rotated: the one given and, if that is a link, its target,
/// because the file is rotated where it is.
fn places(path: &Path) -> Vec<PathBuf> {
    let mut places = vec![path.to_path_buf()];
    places.extend(fs::canonicalize(path).ok().filter(|real| real != path));
    places
}

/// The folder that contains the path.
fn folder_of(path: &Path) -> Option<&Path> {
    path.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

fn files_in(folder: &Path) -> impl Iterator<Item = (PathBuf, fs::Metadata)> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(MOST_NAMES);
    entries.filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((entry.path(), metadata))
    })
}

fn siblings(path: &Path) -> Vec<Sibling> {
    let of = |place: PathBuf| {
        let own = place.file_name()?.as_bytes().to_vec();
        let files = files_in(folder_of(&place)?).filter_map(move |(path, metadata)| {
            let added = path.file_name()?.as_bytes().strip_prefix(&own[..])?.to_vec();
            Some(Sibling { path, added, metadata })
        });
        Some(files.collect::<Vec<_>>())
    };
    places(path).into_iter().filter_map(of).flatten().collect()
}

/// The present name of the file at that position.
pub(super) fn renamed(path: &Path, come: &Position) -> Option<PathBuf> {
    let same = |metadata: &fs::Metadata| is(metadata, come.of) && metadata.len() >= come.at;
    let folders =
        places(path).into_iter().filter_map(|place| folder_of(&place).map(Path::to_path_buf));
    let mut files = folders.flat_map(|folder| files_in(&folder));
    files.find(|(_, metadata)| same(metadata)).map(|(path, _)| path)
}

/// The latest copy, made since then, of the file at that position: logs are also rotated by copying
/// and cutting them.
pub(super) fn copied(path: &Path, come: &Position, since: u64) -> Option<PathBuf> {
    if !is_marked(come) {
        return None;
    }
    let here = fs::metadata(path).ok().map(|here| identity(&here));
    let mut copies = siblings(path);
    copies.retain(|file| file.is_rotated() && Some(identity(&file.metadata)) != here);
    // A former copy may have been written over.
    let made = |file: &Sibling| Age::of_file(&file.metadata).map(|age| age.made.max(age.written));
    let latest = copies.into_iter().max_by_key(made)?;
    if made(&latest)? < since {
        return None;
    }
    let file = Opened::file(&latest.path).ok()?;
    may_be(&file, come).ok().filter(|may| *may).map(|_| latest.path)
}

/// The oldest rotated file beside `path` that was begun after one of that age: the middle one if
/// the log was rotated twice before it was read to its end.
///
/// A copy of the file that was read is not what follows it.
pub(super) fn next_younger(path: &Path, than: Age, read: &Position) -> Option<PathBuf> {
    let rotated = siblings(path).into_iter().filter_map(|file| {
        let age = Age::of_file(&file.metadata)?;
        let younger = age.made > than.made && age.written >= than.written;
        if !file.is_rotated() || !younger || is_copy(&file, age, than, read) {
            return None;
        }
        // Timestamps are only accurate to some milliseconds, and the file at the path itself is the
        // last.
        Some(((age.made, file.added.is_empty(), age.written), file.path))
    });
    rotated.min().map(|(_, path)| path)
}

/// Whether a file is a copy, including its timestamps, of the one of that age that was read so far.
fn is_copy(file: &Sibling, age: Age, of: Age, read: &Position) -> bool {
    age.written == of.written
        && file.metadata.len() == read.at
        && is_marked(read)
        && Opened::file(&file.path).and_then(|file| may_be(&file, read)).unwrap_or(false)
}

/// What has happened to a file that cannot be reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileRemains {
    /// Compressed, after it had been read completely.
    Nothing,
    /// Compressed under that name.
    Compressed(PathBuf),
    /// Not found.
    Unknown,
}

/// Looks for the remains of the file at that position.
pub(super) fn remains(path: &Path, come: &Position) -> FileRemains {
    let ends = |name: &[u8]| COMPRESSED.iter().any(|end| name.ends_with(end.as_bytes()));
    let compressed = siblings(path).into_iter().filter(|file| ends(&file.added));
    // Compressing keeps the time of the last write, which was after the file was made.
    let since = Age::of(come.of).map_or(0, |age| age.made);
    let mut compressed: Vec<_> = compressed
        .filter_map(|file| Some((Age::of_file(&file.metadata)?.written, file.path)))
        .filter(|(written, _)| *written >= since)
        .collect();
    compressed.sort();
    match compressed.into_iter().next() {
        None => FileRemains::Unknown,
        Some((_, path)) => match unpacked_length(&path) {
            Some(length) if u64::from(length) == come.at & u64::from(u32::MAX) => {
                FileRemains::Nothing
            }
            _ => FileRemains::Compressed(path),
        },
    }
}

/// The lower half of the original length of a gzip file: its last four bytes.
fn unpacked_length(path: &Path) -> Option<u32> {
    if path.extension()? != "gz" {
        return None;
    }
    let last = || -> io::Result<[u8; 4]> {
        let mut file = Opened::file(path)?;
        file.seek(SeekFrom::End(-4))?;
        let mut last = [0; 4];
        file.read_exact(&mut last)?;
        Ok(last)
    };
    last().ok().map(u32::from_le_bytes)
}
