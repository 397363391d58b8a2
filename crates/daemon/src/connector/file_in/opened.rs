//! A file that is open and is read in pieces.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use reflowd_runtime::{Position, panic::Boundary};

use super::{
    identity::{Age, Head, identity, may_be, nanos},
    line_splitter::{LineSplitter, SplitLine},
};

/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// A file and the progress in it.
pub(super) struct Opened {
    file: Arc<fs::File>,
    /// Its identity.
    of: [u64; 2],
    head: Head,
    splitter: LineSplitter,
    /// When it was opened, in nanoseconds since the Unix epoch.
    since: u64,
    /// Where the next piece begins.
    at: u64,
    /// The offset and number of the next line.
    line: (u64, u64),
    /// The buffer of the last read, which is reused.
    piece: Vec<u8>,
}

/// The state of a followed file's path, seen from the file that is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PathSight {
    /// The same file, which may have grown.
    Same,
    /// The same file, shorter than what was read or with another beginning.
    Cut,
    /// Another file.
    Replaced,
}

impl Opened {
    /// Opens a regular file; anything else could make a reader wait for ever. Blocks.
    pub(super) fn file(path: &Path) -> io::Result<fs::File> {
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(file)
    }

    /// Opens a file at its first line. Blocks.
    pub(super) fn begin(file: fs::File) -> io::Result<Self> {
        let of = identity(&file.metadata()?);
        Ok(Self {
            file: Arc::new(file),
            of,
            head: Head::default(),
            splitter: LineSplitter::default(),
            since: nanos(SystemTime::now()).unwrap_or(0),
            at: 0,
            line: (0, 0),
            piece: Vec::new(),
        })
    }

    /// Opens a file where it was left, or returns `None` if another file is there now. Blocks.
    pub(super) fn go_on(file: &fs::File, come: Position) -> io::Result<Option<Self>> {
        let Position { mut at, count, .. } = come;
        let length = file.metadata()?.len();
        if !may_be(file, &come)? {
            return Ok(None);
        }
        if at > 0 && at < length {
            let mut around = [0; 2];
            file.read_exact_at(&mut around, at - 1)?;
            match around {
                [b'\n', _] => {}
                // The last line had no end then, and has one now.
                [_, b'\n'] => at += 1,
                _ => return Ok(None),
            }
        }
        Ok(Some(Self {
            head: Head::read(file, at)?,
            splitter: LineSplitter::after(at, count),
            at,
            line: (at, count),
            ..Self::begin(file.try_clone()?)?
        }))
    }

    /// When it was opened, in nanoseconds since the Unix epoch.
    pub(super) fn since(&self) -> u64 {
        self.since
    }

    /// The position if the next line begins at `at`.
    pub(super) fn position(&mut self) -> Position {
        let (at, count) = self.line;
        Position { of: self.of, at, count, mark: self.head.mark(at) }
    }

    /// The next complete line, and the offset of its end.
    pub(super) fn next(&mut self) -> Option<(SplitLine, Position)> {
        let line = self.splitter.next()?;
        Some(self.after(line))
    }

    /// The last line, if it has no end.
    pub(super) fn rest(&mut self) -> Option<(SplitLine, Position)> {
        let line = self.splitter.rest()?;
        Some(self.after(line))
    }

    fn after(&mut self, line: SplitLine) -> (SplitLine, Position) {
        self.line = (line.end, line.number);
        (line, self.position())
    }

    /// Reads another piece. Returns whether there was one.
    pub(super) async fn read(&mut self) -> io::Result<bool> {
        let (file, at) = (Arc::clone(&self.file), self.at);
        let is_between_lines = self.splitter.is_between_lines();
        let mut piece = std::mem::take(&mut self.piece);
        let (piece, read, hole) = blocking(move || {
            piece.resize(PIECE, 0);
            let read = loop {
                match file.read_at(&mut piece, at) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    read => break read?,
                }
            };
            let is_empty = read > 0 && is_between_lines && piece[..read].iter().all(|b| *b == 0);
            let hole = if is_empty { hole(&file, at + read as u64)? } else { 0 };
            Ok((piece, read, hole))
        })
        .await?;
        self.piece = piece;
        self.head.extend(at, &self.piece[..read]);
        self.splitter.feed(&self.piece[..read]);
        self.splitter.skip(hole);
        self.at = at + read as u64 + hole;
        Ok(read > 0)
    }

    /// The state of the file, and of its name.
    pub(super) async fn look(&self, path: &Path) -> io::Result<PathSight> {
        let (file, path, at) = (Arc::clone(&self.file), path.to_path_buf(), self.at);
        let head = self.head.clone();
        blocking(move || {
            let here = file.metadata()?;
            match fs::metadata(path) {
                Ok(there) if (there.dev(), there.ino()) != (here.dev(), here.ino()) => {
                    return Ok(PathSight::Replaced);
                }
                // A file without a name may get one again, as when it is rotated.
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let cut = if here.len() < at {
                // Some files, as those in /proc, do not tell how long they are.
                file.read_at(&mut [0], at - 1)? == 0
            } else {
                here.len() > at && !head.is_of(&file)?
            };
            Ok(if cut { PathSight::Cut } else { PathSight::Same })
        })
        .await
    }

    /// The times at which the file was made and last written, if the file system records both.
    pub(super) async fn age(&self) -> io::Result<Option<Age>> {
        let file = Arc::clone(&self.file);
        blocking(move || Ok(Age::of_file(&file.metadata()?))).await
    }

    /// Goes back to the first line.
    pub(super) async fn again(self) -> io::Result<Self> {
        blocking(move || Self::begin(self.file.try_clone()?)).await
    }
}

/// The length of the hole at `at`: a file that is cut under a writer that keeps its offset has one
/// in place of what was cut off. Reading a large one would take minutes.
fn hole(file: &fs::File, at: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Ok(data.saturating_sub(at)),
        // There is nothing else up to the end.
        Err(rustix::io::Errno::NXIO) => Ok(file.metadata()?.len().saturating_sub(at)),
        // The file system does not know.
        Err(_) => Ok(0),
    }
}

/// Runs blocking work.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    Boundary::Source.aside(work).await.map_err(io::Error::other)?
}
