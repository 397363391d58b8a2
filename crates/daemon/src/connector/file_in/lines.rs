//! The way of lines from a file to the wires.

use std::{
    fs,
    io::{self, SeekFrom},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use reflowd_runtime::{Emitter, Message, PortName, Position};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    task::coop,
    time::{self, Instant},
};
use tracing::{info, warn};

use super::{
    line_splitter::{Line, LineSplitter},
    pace::Pace,
    rotation::{Age, identity, next_younger, rotated},
};

/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// How often a followed file is looked at for more.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long nothing must have come to a file that was renamed before the one in its place is
/// read: whoever writes may still have the old one open.
const LET_GO: Duration = Duration::from_secs(1);

/// At most one warning about unreadable lines in this time; it tells how many there were.
const WARNING_GAP: Duration = Duration::from_secs(1);

/// The way of lines from a file to the wires.
pub(super) struct Lines<'a> {
    pub(super) path: &'a Path,
    pub(super) out: Emitter,
    pub(super) out_port: PortName,
    pub(super) error_port: PortName,
    pub(super) pace: Option<Pace>,
    /// The file that is read, where it is to be known how far.
    pub(super) file: Option<[u64; 2]>,
    /// Lines that were no message, since the last warning.
    pub(super) unreadable: u64,
    pub(super) warned: Option<Instant>,
}

impl Lines<'_> {
    /// Opens the file to go on where it was left, if that is known.
    async fn take_up(&mut self) -> io::Result<(File, LineSplitter)> {
        let file = open(self.path).await?;
        let of = identity(&file.metadata().await?);
        match self.out.resume().filter(|come| come.of == of) {
            Some(come) => self.go_on(file, come).await,
            None => self.begin(file).await,
        }
    }

    /// Goes on in a file from there, unless it has become another since.
    async fn go_on(
        &mut self,
        mut file: File,
        mut come: Position,
    ) -> io::Result<(File, LineSplitter)> {
        let length = file.metadata().await?.len();
        if come.at > 0 && come.at != length {
            let mut around = [0; 2];
            if come.at < length {
                file.seek(SeekFrom::Start(come.at - 1)).await?;
                file.read_exact(&mut around).await?;
            }
            let [before, after] = around;
            if before != b'\n' && after == b'\n' {
                // The last line had no end then, and has one now.
                come.at += 1;
            } else if before != b'\n' {
                info!(path = %self.path.display(), "the file is another than when it was read last, and is read from its beginning");
                return self.begin(file).await;
            }
        }
        self.file = Some(come.of);
        file.seek(SeekFrom::Start(come.at)).await?;
        Ok((file, LineSplitter::after(come.at, come.count)))
    }

    /// Begins at the first line of a file, and notes that.
    async fn begin(&mut self, mut file: File) -> io::Result<(File, LineSplitter)> {
        let of = identity(&file.metadata().await?);
        self.file = Some(of);
        self.out.come_to(Some(Position { of, at: 0, count: 0 }));
        file.seek(SeekFrom::Start(0)).await?;
        Ok((file, LineSplitter::default()))
    }

    /// Puts out the file once, up to its end.
    pub(super) async fn once(&mut self) -> io::Result<u64> {
        let (mut file, mut splitter) = self.take_up().await?;
        let mut count = self.read_on(&mut file, &mut splitter).await?;
        if let Some(line) = splitter.rest() {
            count += 1;
            self.put(line).await;
        }
        Ok(count)
    }

    /// Puts out the file from its beginning to its end, and tells how many lines it had.
    pub(super) async fn pass(&mut self) -> io::Result<u64> {
        let mut file = open(self.path).await?;
        let mut splitter = LineSplitter::default();
        let mut count = self.read_on(&mut file, &mut splitter).await?;
        if let Some(line) = splitter.rest() {
            count += 1;
            self.put(line).await;
        }
        Ok(count)
    }

    /// Opens the file that was followed last, by whatever name it goes since it was rotated,
    /// or else the one that is there.
    async fn take_up_rotated(&mut self) -> io::Result<(File, LineSplitter)> {
        let Some(come) = self.out.resume() else { return self.take_up().await };
        let path = self.path.to_path_buf();
        let searched = tokio::task::spawn_blocking(move || {
            // One that was cut in its place has younger copies, which hold what was read.
            let here = fs::metadata(&path).ok().map(|here| identity(&here));
            if here == Some(come.of) {
                return None;
            }
            let same = rotated(&path, come.of, come.at).map(|path| (path, true));
            same.or_else(|| Some((next_younger(&path, Age::of(come.of)?)?, false)))
        });
        match searched.await.expect("looking at names does not panic") {
            Some((path, true)) => self.go_on(open(&path).await?, come).await,
            Some((path, false)) => self.begin(open(&path).await?).await,
            None => self.take_up().await,
        }
    }

    /// Opens the file that was begun next after the one that was read to its end.
    async fn open_next(&self, read: &File) -> io::Result<File> {
        let (path, age) = (self.path.to_path_buf(), Age::of_file(&read.metadata().await?));
        let searched = tokio::task::spawn_blocking(move || next_younger(&path, age?));
        let next = searched.await.expect("looking at names does not panic");
        open(next.as_deref().unwrap_or(self.path)).await
    }

    /// Puts out the file and what is appended to it, for ever.
    pub(super) async fn follow(&mut self) -> io::Result<()> {
        let (mut file, mut splitter) = self.take_up_rotated().await?;
        // Since when nothing has come to a file that has lost its name.
        let mut silent: Option<Instant> = None;
        loop {
            let before = file.stream_position().await?;
            self.read_on(&mut file, &mut splitter).await?;
            let came = file.stream_position().await? > before;
            match look(&mut file, self.path).await? {
                Sight::Same => {
                    silent = None;
                    time::sleep(LOOK_AGAIN).await;
                }
                Sight::Truncated => {
                    info!(path = %self.path.display(), "the followed file was cut, and is read from its beginning");
                    (file, splitter) = self.begin(file).await?;
                }
                Sight::Replaced => {
                    // Whoever writes may not have noticed yet.
                    let now = Instant::now();
                    let since = *silent.get_or_insert(now);
                    if came {
                        silent = Some(now);
                    }
                    if came || now - since < LET_GO {
                        time::sleep(LOOK_AGAIN).await;
                        continue;
                    }
                    if let Some(line) = splitter.rest() {
                        self.put(line).await;
                    }
                    match self.open_next(&file).await {
                        Ok(next) => (file, splitter) = self.begin(next).await?,
                        // It has gone again: there will be another.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        Err(error) => return Err(error),
                    }
                    silent = None;
                }
            }
        }
    }

    /// Puts out the complete lines up to the present end of the file.
    async fn read_on(&mut self, file: &mut File, splitter: &mut LineSplitter) -> io::Result<u64> {
        let mut count = 0;
        loop {
            splitter.buffer().reserve(PIECE);
            if file.read_buf(splitter.buffer()).await? == 0 {
                return Ok(count);
            }
            while let Some(line) = splitter.next() {
                count += 1;
                self.put(line).await;
            }
        }
    }

    async fn put(&mut self, line: Line) {
        let (at, count) = (line.end, line.number);
        let come = self.file.map(|of| Position { of, at, count });
        let message = match &line.bytes {
            Some(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => {
                self.out.come_to(come);
                coop::consume_budget().await;
                return;
            }
            Some(bytes) => Message::from_plain(bytes, bytes).map_err(|error| error.to_string()),
            None => Err("it is longer than 16 MiB".into()),
        };
        if let Some(pace) = &mut self.pace {
            time::sleep_until(pace.next(Instant::now())).await;
        }
        match message {
            Ok(message) => self.out.emit_from(&self.out_port, message, come).await,
            Err(why) => self.complain(line.number, &why, come).await,
        }
        coop::consume_budget().await;
    }

    async fn complain(&mut self, number: u64, why: &str, come: Option<Position>) {
        self.unreadable += 1;
        let now = Instant::now();
        if self.warned.is_none_or(|at| now - at >= WARNING_GAP) {
            self.warned = Some(now);
            let lines = std::mem::take(&mut self.unreadable);
            warn!(path = %self.path.display(), line = number, why, lines, "no message on a line");
        }
        let text = format!("{}:{number}: no message: {why}", self.path.display());
        self.out.emit_from(&self.error_port, Message::error(&text), come).await;
    }
}

/// What a followed file's path looks like from its end.
#[derive(Debug, PartialEq, Eq)]
enum Sight {
    /// The same file, with nothing new before its end.
    Same,
    /// The same file, shorter than what was read of it. One that was cut and has
    /// grown past that again between two looks cannot be told from one that grew.
    Truncated,
    /// Another file.
    Replaced,
}

async fn look(file: &mut File, path: &Path) -> io::Result<Sight> {
    let at = file.stream_position().await?;
    let here = file.metadata().await?;
    match tokio::fs::metadata(path).await {
        Ok(there) if (there.dev(), there.ino()) != (here.dev(), here.ino()) => Ok(Sight::Replaced),
        // A file without a name may get one again, as when it is rotated.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ if here.len() < at => Ok(Sight::Truncated),
        _ => Ok(Sight::Same),
    }
}

/// Opens a regular file; anything else could make a reader wait for ever.
async fn open(path: &Path) -> io::Result<File> {
    let path = path.to_path_buf();
    let opened = tokio::task::spawn_blocking(move || {
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(&path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(file)
    });
    opened.await.expect("opening a file does not panic").map(File::from_std)
}
