//! Events on disk, so that what has happened can be read after a restart.
//!
//! A line for each, with its checksum before it, appended as events come. Two files: when the
//! newer one is full it takes the place of the older one, so the disk holds a bounded number
//! and at every moment the last ones. A line that a crash has cut is left out, as is one that
//! is damaged, which is told. Where the disk takes nothing, events stay in memory and it is
//! tried again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use reflowd_hot_reload::read_own_file;
use reflowd_runtime::{
    Digest, Event, EventKind, Events,
    panic::{Boundary, Pauses},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Bytes after which a file is full. Two of them hold some tens of thousands of events, more
/// than are kept in memory.
const FULL: u64 = 4 << 20;

/// The longest line, in bytes. A refused configuration can have a report of megabytes; on disk its
/// event keeps the beginning.
const MAX_LINE: usize = 64 << 10;

/// The interval between synchronizations, and between attempts after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Hexadecimal digits of the checksum before each line: enough to notice damage.
const CHECKSUM: usize = 16;

/// The file that events are added to.
const NEWER: &str = "newer";

/// The file that was full before it.
const OLDER: &str = "older";

/// The events of this process and of those before it, as they come to the disk.
pub(crate) struct EventLog {
    folder: PathBuf,
    events: Arc<Events>,
    /// Held while something is written, which blocks.
    writing: Mutex<LogWriter>,
}

struct LogWriter {
    /// The file that lines are added to, with its length; nothing where it has to be opened.
    file: Option<(File, u64)>,
    /// The number of the last event that is written.
    last: u64,
    /// Set while written lines are not synchronized.
    unsynced: bool,
    /// The last reported reason why nothing can be written.
    trouble: Option<String>,
}

/// Where a batch of events ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchEnd {
    OnDisk,
    /// Some of it could not be written.
    InMemory,
}

/// The content of a file.
#[derive(Default)]
struct LoggedEvents {
    events: Vec<Event>,
    /// Lines whose checksum is wrong.
    damaged: u64,
    /// Bytes up to the end of the last whole line.
    whole: u64,
}

impl EventLog {
    /// The log in a folder, which exists. What is there becomes the past of `events`.
    pub(crate) fn open(folder: PathBuf, events: &Arc<Events>) -> Self {
        let (mut past, mut damaged, mut end) = (Vec::new(), 0, 0);
        let mut troubles = Vec::new();
        for name in [OLDER, NEWER] {
            let path = folder.join(name);
            let found = match read_own_file(&path) {
                Ok(bytes) => read(&bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => LoggedEvents::default(),
                Err(error) => {
                    troubles.push((path, format!("{error}; the events in it are left out")));
                    LoggedEvents::default()
                }
            };
            damaged += found.damaged;
            end = found.whole;
            let last = past.last().map_or(0, |event: &Event| event.number);
            past.extend(found.events.into_iter().filter(|event| event.number > last));
        }
        let last = past.last().map_or(0, |event| event.number);
        events.restore(past);
        if damaged > 0 {
            troubles.push((folder.clone(), format!("{damaged} events are damaged and left out")));
        }
        for (path, why) in troubles {
            let path = path.display().to_string();
            warn!(%path, %why, "events of earlier runs cannot be read");
            events.record(EventKind::DataDamaged { path, why });
        }
        let file = append_to(&folder.join(NEWER), end).ok().map(|file| (file, end));
        let writing = Mutex::new(LogWriter { file, last, unsynced: false, trouble: None });
        Self { folder, events: Arc::clone(events), writing }
    }

    /// Writes events as they come, until it is stopped. The last ones are for
    /// [`flush`](Self::flush).
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        Boundary::Events.keep(|| self.write_on(&stop)).await;
    }

    async fn write_on(self: &Arc<Self>, stop: &CancellationToken) {
        let mut pauses = Pauses::default();
        loop {
            let last = self.writing.lock().last;
            let (mut batch, mut live) = self.events.since(last);
            let pause = loop {
                let log = Arc::clone(self);
                match Boundary::Events.aside(move || log.write(&batch)).await {
                    Ok(BatchEnd::OnDisk) => {
                        pauses.succeeded();
                        Boundary::Events.works();
                    }
                    Ok(BatchEnd::InMemory) => break PAUSE,
                    Err(_) => {
                        self.distrust_file();
                        break Boundary::Events.again_after(&mut pauses);
                    }
                }
                let Some(more) = next(&mut live, self.sync_after(), stop).await else {
                    break PAUSE;
                };
                batch = more;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// How long to wait for more events before what was written is synchronized, if it is not yet.
    fn sync_after(&self) -> Option<Duration> {
        self.writing.lock().unsynced.then_some(PAUSE)
    }

    /// A panic may have left half a line. Once opened again, the file is cut behind its last
    /// whole one.
    fn distrust_file(&self) {
        self.writing.lock().file = None;
    }

    /// Brings everything that has happened to the disk itself. Blocks.
    pub(crate) fn flush(&self) {
        let flushed = Boundary::Events.catch(|| {
            let last = self.writing.lock().last;
            self.write(&self.events.since(last).0);
            self.write(&[]);
        });
        if flushed.is_err() {
            self.distrust_file();
        }
    }

    /// Writes events that are not on disk yet; an empty batch synchronizes what was written.
    fn write(&self, batch: &[Event]) -> BatchEnd {
        let mut writing = self.writing.lock();
        let result = match batch {
            [] => writing.sync(),
            batch => batch.iter().try_for_each(|event| writing.add(&self.folder, event)),
        };
        match result {
            Ok(()) => {
                if !batch.is_empty() && writing.trouble.take().is_some() {
                    info!("events are written to disk again");
                }
                BatchEnd::OnDisk
            }
            Err(error) => {
                let why = error.to_string();
                if writing.trouble.as_ref() != Some(&why) {
                    let folder = self.folder.display();
                    warn!(%folder, %why, "events cannot be written; they are kept in memory, and it is tried again");
                    writing.trouble = Some(why);
                }
                BatchEnd::InMemory
            }
        }
    }
}

/// The next events; an empty batch when it is time to synchronize what was written. `None` when
/// the history has to be read again or the log is to stop.
async fn next(
    live: &mut tokio::sync::broadcast::Receiver<Event>,
    sync_after: Option<Duration>,
    stop: &CancellationToken,
) -> Option<Vec<Event>> {
    let sync = async {
        match sync_after {
            Some(pause) => tokio::time::sleep(pause).await,
            None => std::future::pending().await,
        }
    };
    let first = tokio::select! {
        biased;
        () = stop.cancelled() => return None,
        event = live.recv() => event,
        () = sync => return Some(Vec::new()),
    };
    let mut batch = match first {
        Ok(event) => vec![event],
        Err(RecvError::Lagged(_) | RecvError::Closed) => return None,
    };
    while let Ok(event) = live.try_recv() {
        batch.push(event);
    }
    Some(batch)
}

impl LogWriter {
    fn add(&mut self, folder: &Path, event: &Event) -> io::Result<()> {
        if event.number <= self.last {
            return Ok(());
        }
        if self.file.as_ref().is_some_and(|(_, length)| *length >= FULL) {
            self.sync()?;
            self.file = None;
            fs::rename(folder.join(NEWER), folder.join(OLDER))?;
        }
        let (file, length) = match &mut self.file {
            Some(file) => file,
            none => {
                let path = folder.join(NEWER);
                let found = read_own_file(&path).map(|bytes| read(&bytes)).unwrap_or_default();
                let opened = none.insert((append_to(&path, found.whole)?, found.whole));
                if let Some(last) = found.events.last()
                    && last.number >= event.number
                {
                    // An attempt that broke has got so far.
                    self.last = last.number;
                    return Ok(());
                }
                opened
            }
        };
        let line = line(event);
        if let Err(error) = file.write_all(&line) {
            // The next line overwrites an unfinished one.
            _ = file.set_len(*length);
            self.file = None;
            return Err(error);
        }
        *length += line.len() as u64;
        self.last = event.number;
        self.unsynced = true;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some((file, _)) = &self.file
            && self.unsynced
        {
            file.sync_data()?;
        }
        self.unsynced = false;
        Ok(())
    }
}

/// A file to add lines to, cut behind its last whole line.
fn append_to(path: &Path, end: u64) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.set_len(end)?;
    Ok(file)
}

/// The event as its line.
fn line(event: &Event) -> Vec<u8> {
    let mut text = serde_json::to_string(event).expect("an event can be written");
    if text.len() > MAX_LINE {
        text = shortened(event);
    }
    format!("{} {text}\n", checksum(text.as_bytes())).into_bytes()
}

/// A long event with less of its reason.
fn shortened(event: &Event) -> String {
    /// Bytes that are left of each text.
    const LEFT: usize = 8 << 10;
    let mut value = serde_json::to_value(event).expect("an event can be written");
    for field in value.as_object_mut().into_iter().flat_map(|fields| fields.values_mut()) {
        match field {
            serde_json::Value::String(text) if text.len() > LEFT => {
                text.truncate(text.floor_char_boundary(LEFT));
                text.push('…');
            }
            serde_json::Value::Array(list) => list.truncate(LEFT / 64),
            _ => {}
        }
    }
    value.to_string()
}

fn checksum(text: &[u8]) -> String {
    let mut sum = Digest::new(Sha256::digest(text).into()).to_string();
    sum.truncate(CHECKSUM);
    sum
}

fn read(bytes: &[u8]) -> LoggedEvents {
    let mut found = LoggedEvents::default();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        // The last one, which a crash has cut.
        let Some(line) = line.strip_suffix(b"\n") else { break };
        found.whole += line.len() as u64 + 1;
        match read_line(line) {
            Some(event) => found.events.push(event),
            None => found.damaged += 1,
        }
    }
    found
}

fn read_line(line: &[u8]) -> Option<Event> {
    let (sum, text) = line.split_at_checked(CHECKSUM)?;
    let text = text.strip_prefix(b" ")?;
    (sum == checksum(text).as_bytes()).then(|| serde_json::from_slice(text).ok()).flatten()
}

#[cfg(test)]
mod tests;
