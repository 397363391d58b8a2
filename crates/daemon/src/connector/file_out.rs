//! `std:file-out`: a line in a file for each message.
//!
//! When a turn ends, its line is with the operating system: there is no buffer
//! that a crash could lose. A line that could be written only in part, as on a
//! full disk, is taken back, so the file has whole lines only. The file is opened
//! with the first message and made where it is missing; its folder is not, since
//! that is rather a slip in the path.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use reflowd_runtime::{Metadata, Type};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
    time::Instant,
};

use super::{
    Builtin, Prepared, port,
    sink::{Lines, Sink, What},
};

/// How often it is asked whether the path still leads to the open file.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The file; relative to the folder of the configuration.
    path: PathBuf,
    /// Whether what is in the file stays when the actor starts.
    #[serde(default = "yes")]
    append: bool,
    /// What of a message is written.
    #[serde(default)]
    what: What,
}

fn yes() -> bool {
    true
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        component: "std:file-out".into(),
        description: "appends each message to a file as a line of JSON".into(),
        inports: vec![port("in", "what is to be written", Type::Any)],
        outports: Vec::new(),
        config_schema: Some(json!({
            "type": "object",
            "properties": {
                "path": { "type": "string", "description": "the file; relative to the configuration's folder" },
                "append": { "type": "boolean", "default": true, "description": "false empties the file when the actor starts" },
                "what": What::schema(),
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
    let path = base_dir.join(config.path);
    let state = State { open: None, empty: !config.append };
    Ok(Sink::prepare(builtin, config.what, FileOut { path, state: Mutex::new(state) }))
}

struct FileOut {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    open: Option<Open>,
    /// The file is still to be emptied.
    empty: bool,
}

/// The file as it was opened.
struct Open {
    file: File,
    /// Its device and number.
    identity: (u64, u64),
    looked: Instant,
}

impl Lines for FileOut {
    fn write<'a>(&'a self, line: &'a [u8], _: Instant) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { off_the_turns(|| self.append(line)) })
    }
}

/// Does blocking work where it does not hold up the turns of other actors.
fn off_the_turns<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => block_in_place(work),
        _ => work(),
    }
}

impl FileOut {
    fn append(&self, line: &[u8]) -> Result<(), String> {
        let mut state = self.state.lock();
        let State { open, empty } = &mut *state;
        let written = self.opened(open, empty).and_then(|open| put_whole(&mut open.file, line));
        written.map_err(|error| {
            // Whatever it was, the next attempt starts from the path.
            *open = None;
            self.explain(&error)
        })
    }

    /// The open file, opened anew where the path has come to lead elsewhere.
    fn opened<'a>(&self, open: &'a mut Option<Open>, empty: &mut bool) -> io::Result<&'a mut Open> {
        let now = Instant::now();
        if let Some(file) = open
            && now.duration_since(file.looked) >= LOOK_AGAIN
        {
            file.looked = now;
            let there = std::fs::metadata(&self.path).map(|there| (there.dev(), there.ino()));
            if there.ok() != Some(file.identity) {
                *open = None;
            }
        }
        match open {
            Some(open) => Ok(open),
            None => {
                let file = self.open(*empty)?;
                *empty = false;
                let there = file.metadata()?;
                Ok(open.insert(Open { file, identity: (there.dev(), there.ino()), looked: now }))
            }
        }
    }

    fn open(&self, empty: bool) -> io::Result<File> {
        // A pipe without a reader must be an error and not a wait.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .custom_flags(nonblocking)
            .open(&self.path)?;
        let kind = file.metadata()?.file_type();
        if !(kind.is_file() || kind.is_char_device()) {
            return Err(io::Error::other("it is no regular file"));
        }
        if empty && kind.is_file() {
            file.set_len(0)?;
        }
        if ends_torn(&self.path) {
            // Somebody else's crash must not spoil our first line.
            put_whole(&mut file, b"\n")?;
        }
        Ok(file)
    }

    fn explain(&self, error: &io::Error) -> String {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "make its folder, or correct `path`",
            io::ErrorKind::PermissionDenied => "let the user that runs reflowd write it",
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room",
            _ => "see that it can be written",
        };
        format!("cannot write {}: {error}; {advice}", self.path.display())
    }
}

/// Whether a file ends in the middle of a line, as far as can be seen.
fn ends_torn(path: &Path) -> bool {
    let last = || -> io::Result<u8> {
        let mut file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Ok(b'\n');
        }
        file.seek(SeekFrom::End(-1))?;
        let mut last = [b'\n'];
        file.read_exact(&mut last)?;
        Ok(last[0])
    };
    // An empty file has no last byte, and one that cannot be read keeps its secret.
    last().is_ok_and(|last| last != b'\n')
}

/// A file whose end can be taken back.
trait Tail: Write {
    /// Takes the last `bytes` bytes away.
    fn take_back(&mut self, bytes: u64) -> io::Result<()>;
}

impl Tail for File {
    fn take_back(&mut self, bytes: u64) -> io::Result<()> {
        let end = self.stream_position()?;
        // Where somebody else has appended meanwhile, the end is not ours to cut.
        if self.metadata()?.len() == end { self.set_len(end.saturating_sub(bytes)) } else { Ok(()) }
    }
}

/// Appends all of `line`, or nothing of it.
fn put_whole(file: &mut impl Tail, line: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < line.len() {
        let error = match file.write(&line[written..]) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(more) => {
                written += more;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        if written > 0 {
            file.take_back(written as u64)?;
        }
        return Err(error);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes, which takes three at a time.
    struct Disk {
        room: usize,
        bytes: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.room - self.bytes.len();
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let some = bytes.len().min(room).min(3);
            self.bytes.extend_from_slice(&bytes[..some]);
            Ok(some)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Tail for Disk {
        fn take_back(&mut self, bytes: u64) -> io::Result<()> {
            let left = self.bytes.len() - usize::try_from(bytes).unwrap();
            self.bytes.truncate(left);
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_keeps_no_torn_line() {
        let mut disk = Disk { room: 12, bytes: Vec::new() };
        put_whole(&mut disk, b"12345\n").unwrap();
        let error = put_whole(&mut disk, b"abcdefgh\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.bytes, b"12345\n");
        put_whole(&mut disk, b"67890\n").unwrap();
        assert_eq!(disk.bytes, b"12345\n67890\n");
    }

    #[test]
    fn what_was_written_is_taken_off_a_real_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        file.write_all(b"whole\ntor").unwrap();
        file.take_back(3).unwrap();
        file.write_all(b"next\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole\nnext\n");
    }
}
