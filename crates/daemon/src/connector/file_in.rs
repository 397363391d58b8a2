//! `std:file-in`: the lines of a file, each a JSON value, as messages.
//!
//! The file is read in pieces as the flow takes them, never ahead by more than
//! one piece. What comes after its end is the `mode`: nothing, the file again, or
//! whatever is appended to it.
//!
//! How far it has come is noted with each line, in one step with putting it out: the file, by
//! its number and not its name, and the byte after the line. From there it goes on after an
//! edit of the actor, after a failure, and after a stop of the daemon, with no line lost or
//! doubled. A file that was rotated meanwhile is found beside its old name and read to its end
//! before the one in its place. After a crash it goes on from where it was when states were
//! last written. A file that is repeated always begins anew.

use std::{
    fs,
    io::{self, SeekFrom},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use reflowd_runtime::{
    Digest, ERROR_PORT, Emitter, Message, Metadata, PortName, Position, Source, SourceError, Type,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    task::coop,
    time::{self, Instant},
};
use tracing::{info, warn};

use super::{
    Builtin, Prepared, error_port,
    line_splitter::{Line, LineSplitter},
    pace::Pace,
    port, port_name,
};

/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// How often a followed file is looked at for more.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long nothing must have come to a file that was renamed before the one in its place is
/// read: whoever writes may still have the old one open.
const LET_GO: Duration = Duration::from_secs(1);

/// The pause after a repeated file had nothing in it: it must not be read in circles.
const EMPTY_PAUSE: Duration = Duration::from_secs(1);

/// At most one warning about unreadable lines in this time; it tells how many there were.
const WARNING_GAP: Duration = Duration::from_secs(1);

/// The lowest rate that can be asked for, in messages a second: one in eleven days.
const LOWEST_RATE: f64 = 1e-6;

/// The highest rate that can be asked for, in messages a second.
const HIGHEST_RATE: f64 = 1e6;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The file; relative to the folder of the configuration.
    path: PathBuf,
    /// Messages a second; as fast as they are taken where it is not set.
    rate: Option<Rate>,
    /// What follows the end of the file.
    #[serde(default)]
    mode: Mode,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`rate` is messages a second: 200, 0.5 or \"200/s\"")]
enum Rate {
    Number(f64),
    Text(String),
}

impl Rate {
    fn per_second(&self) -> Result<f64, String> {
        let rate = match self {
            Self::Number(rate) => Some(*rate),
            Self::Text(text) => text.strip_suffix("/s").unwrap_or(text).trim().parse().ok(),
        };
        rate.filter(|rate| (LOWEST_RATE..=HIGHEST_RATE).contains(rate)).ok_or_else(|| {
            format!("`rate` is messages a second, from {LOWEST_RATE} to {HIGHEST_RATE}")
        })
    }
}

/// What follows the end of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// Nothing: the source is finished.
    #[default]
    Once,
    /// The file again from its first line.
    Repeat,
    /// What is appended to it, or the file that takes its place.
    Follow,
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        component: "std:file-in".into(),
        description: "puts out each line of a file, a JSON value, as a message".into(),
        inports: Vec::new(),
        outports: vec![port("out", "a line's value", Type::Any), error_port()],
        config_schema: Some(json!({
            "type": "object",
            "properties": {
                "path": { "type": "string", "description": "the file; relative to the configuration's folder" },
                "rate": {
                    "type": ["number", "string"],
                    "description": "messages a second, such as 200 or \"200/s\"; as fast as they are taken where it is not set",
                },
                "mode": { "enum": ["once", "repeat", "follow"], "default": "once" },
            },
            "required": ["path"],
            "additionalProperties": false,
        })),
        version: None,
    }
}

pub(super) fn prepare(
    builtin: Builtin,
    config: Config,
    base_dir: &Path,
) -> Result<Prepared, String> {
    if config.path.as_os_str().is_empty() {
        return Err("`path` is empty".into());
    }
    Ok(Prepared::Source(Arc::new(FileIn {
        digest: builtin.digest(),
        metadata: metadata(),
        path: base_dir.join(config.path),
        rate: config.rate.as_ref().map(Rate::per_second).transpose()?,
        mode: config.mode,
    })))
}

struct FileIn {
    digest: Digest,
    metadata: Metadata,
    path: PathBuf,
    rate: Option<f64>,
    mode: Mode,
}

impl Source for FileIn {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let mut lines = Lines {
                path: &self.path,
                out,
                out_port: port_name("out"),
                error_port: port_name(ERROR_PORT),
                pace: self.rate.map(Pace::new),
                file: None,
                unreadable: 0,
                warned: None,
            };
            let failed = |source| SourceError { why: explain(&self.path, &source) };
            match self.mode {
                Mode::Once => lines.once().await.map(|_| ()).map_err(failed),
                Mode::Repeat => {
                    lines.out.come_to(None);
                    loop {
                        if lines.pass().await.map_err(failed)? == 0 {
                            time::sleep(EMPTY_PAUSE).await;
                        }
                    }
                }
                Mode::Follow => lines.follow().await.map_err(failed),
            }
        })
    }
}

/// What is wrong with a file, and what to do.
fn explain(path: &Path, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => "put it there, or correct `path`",
        io::ErrorKind::PermissionDenied => "let the user that runs reflowd read it",
        _ => "see that it can be read",
    };
    format!("cannot read {}: {error}; {advice}", path.display())
}

/// The way of lines from a file to the wires.
struct Lines<'a> {
    path: &'a Path,
    out: Emitter,
    out_port: PortName,
    error_port: PortName,
    pace: Option<Pace>,
    /// The file that is read, where it is to be known how far.
    file: Option<[u64; 2]>,
    /// Lines that were no message, since the last warning.
    unreadable: u64,
    warned: Option<Instant>,
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
    async fn once(&mut self) -> io::Result<u64> {
        let (mut file, mut splitter) = self.take_up().await?;
        let mut count = self.read_on(&mut file, &mut splitter).await?;
        if let Some(line) = splitter.rest() {
            count += 1;
            self.put(line).await;
        }
        Ok(count)
    }

    /// Puts out the file from its beginning to its end, and tells how many lines it had.
    async fn pass(&mut self) -> io::Result<u64> {
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
    async fn follow(&mut self) -> io::Result<()> {
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

/// The name that the file `of` has beside `path`, if it is at least `at` long and its name
/// is that of `path` with something added: so files are called when they are rotated.
fn rotated(path: &Path, of: [u64; 2], at: u64) -> Option<PathBuf> {
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
fn identity(file: &fs::Metadata) -> [u64; 2] {
    let made = file.created().ok().and_then(nanos).unwrap_or(0);
    [file.dev().rotate_left(32) ^ file.ino(), made]
}

/// When a file was made and last written, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Age {
    made: u64,
    written: u64,
}

impl Age {
    fn of_file(file: &fs::Metadata) -> Option<Self> {
        Some(Self { made: nanos(file.created().ok()?)?, written: nanos(file.modified().ok()?)? })
    }

    /// What is known of a file that is gone.
    fn of(identity: [u64; 2]) -> Option<Self> {
        let made = identity[1];
        (made > 0).then_some(Self { made, written: made })
    }
}

fn nanos(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos()).ok()
}

/// The oldest file beside `path` that was rotated and begun after one of that age: where a
/// file is rotated twice before it is read to its end, that is the one in the middle.
fn next_younger(path: &Path, than: Age) -> Option<PathBuf> {
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
