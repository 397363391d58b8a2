//! One regular file, read whole or not at all.
//!
//! Whoever writes a file does not ask who reads it. Its [`Stamp`] before and
//! after the reading tell whether what was read is one state of the file, and
//! the bytes are never looked for under that path again.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};

use crate::stranger::{self, Stranger};

/// What the system says of a file's content without reading it.
///
/// The change time is the one that no program can set, so a copy that keeps
/// the modification time still shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A file.
    File {
        stamp: Stamp,
        /// The untrusted user who could change it.
        stranger: Option<Stranger>,
    },
    /// Something that is no file, and is passed over.
    Oddity(Oddity),
    /// Nothing.
    Nothing,
}

/// What can bear the name of a file without being one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Oddity {
    Folder,
    Fifo,
    Socket,
    Device,
    DanglingLink,
    LoopingLink,
}

/// What came of reading a file.
#[derive(Debug)]
pub(crate) enum ReadFile {
    /// The whole file, as it was with that stamp.
    Whole(Bytes),
    /// It changed meanwhile, or had changed before.
    Moving,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// How long the file has stood still by the wall clock; nothing, where the
    /// file comes from the future and the clock is not to be trusted.
    pub(crate) fn age(&self, wall: SystemTime) -> Option<Duration> {
        let (seconds, nanos) = self.modified.max(self.changed);
        let since_epoch = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
        wall.duration_since(SystemTime::UNIX_EPOCH + since_epoch).ok()
    }
}

impl Oddity {
    /// In a log line.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Folder => "a folder",
            Self::Fifo => "a named pipe",
            Self::Socket => "a socket",
            Self::Device => "a device",
            Self::DanglingLink => "a link to nothing",
            Self::LoopingLink => "a link that leads in a circle",
        }
    }
}

/// What `path` leads to, following symlinks.
///
/// # Errors
/// The system does not say, for want of permission for instance.
pub(crate) fn find(path: &Path) -> io::Result<Found> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Ok(Found::Oddity(Oddity::LoopingLink));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
            return Ok(if link { Found::Oddity(Oddity::DanglingLink) } else { Found::Nothing });
        }
        // A folder on the way is none.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    let kind = metadata.file_type();
    Ok(if kind.is_file() {
        Found::File { stamp: Stamp::of(&metadata), stranger: stranger::of(path, &metadata) }
    } else if kind.is_dir() {
        Found::Oddity(Oddity::Folder)
    } else if kind.is_fifo() {
        Found::Oddity(Oddity::Fifo)
    } else if kind.is_socket() {
        Found::Oddity(Oddity::Socket)
    } else {
        Found::Oddity(Oddity::Device)
    })
}

/// The file that a link leads to in the end; nothing, where `path` is none.
///
/// A file that is written where it lies changes nothing in the folder of a link to it.
pub(crate) fn target(path: &Path) -> Option<PathBuf> {
    fs::read_link(path).ok()?;
    fs::canonicalize(path).ok()
}

/// Reads the file that has that stamp, if it has it before and after.
///
/// # Errors
/// It cannot be opened or read.
pub(crate) fn read(path: &Path, stamp: &Stamp) -> io::Result<ReadFile> {
    // What was a file a moment ago may be a pipe by now: never wait for a
    // writer, never become the owner of a terminal.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || Stamp::of(&metadata) != *stamp {
        return Ok(ReadFile::Moving);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(stamp.size).unwrap_or(0));
    // One byte more than there should be, to notice that there is more.
    (&mut file).take(stamp.size.saturating_add(1)).read_to_end(&mut bytes)?;
    let whole = bytes.len() as u64 == stamp.size && Stamp::of(&file.metadata()?) == *stamp;
    Ok(if whole { ReadFile::Whole(bytes.into()) } else { ReadFile::Moving })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType, mknodat};
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_is_no_file_is_told_apart() {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("folder.wasm")).unwrap();
        mknodat(CWD, path("fifo.wasm"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        symlink("nowhere", path("dangling.wasm")).unwrap();
        symlink("loop.wasm", path("loop.wasm")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket.wasm")).unwrap();
        for (name, oddity) in [
            ("folder.wasm", Oddity::Folder),
            ("fifo.wasm", Oddity::Fifo),
            ("socket.wasm", Oddity::Socket),
            ("dangling.wasm", Oddity::DanglingLink),
            ("loop.wasm", Oddity::LoopingLink),
        ] {
            assert_eq!(find(&path(name)).unwrap(), Found::Oddity(oddity), "{name}");
        }
        assert_eq!(find(Path::new("/dev/null")).unwrap(), Found::Oddity(Oddity::Device));
        assert_eq!(find(&path("none.wasm")).unwrap(), Found::Nothing);
    }

    #[test]
    fn a_file_of_another_stamp_is_not_read() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a.wasm");
        fs::write(&path, "old").unwrap();
        let Found::File { stamp, .. } = find(&path).unwrap() else { panic!("it is a file") };
        assert!(matches!(read(&path, &stamp).unwrap(), ReadFile::Whole(bytes) if bytes == "old"));
        // Of the same length, so that only the stamp tells.
        let other = folder.path().join("other");
        fs::write(&other, "new").unwrap();
        fs::rename(other, &path).unwrap();
        assert!(matches!(read(&path, &stamp).unwrap(), ReadFile::Moving));
    }

    #[test]
    fn a_pipe_in_place_of_the_file_does_not_hold_up_the_reader() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a.wasm");
        fs::write(&path, "old").unwrap();
        let Found::File { stamp, .. } = find(&path).unwrap() else { panic!("it is a file") };
        fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(matches!(read(&path, &stamp).unwrap(), ReadFile::Moving));
    }

    #[test]
    fn a_file_from_the_future_has_no_age() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a.wasm");
        fs::write(&path, "").unwrap();
        let Found::File { stamp, .. } = find(&path).unwrap() else { panic!("it is a file") };
        let now = SystemTime::now();
        assert!(stamp.age(now + Duration::from_secs(60)) >= Some(Duration::from_secs(59)));
        assert_eq!(stamp.age(now - Duration::from_secs(60)), None);
    }
}
