//! The log as entries of systemd's journal, in its native protocol.
//!
//! Each field of an event is a field of its entry, `REFLOWD_ACTOR=…`, to search by. `MESSAGE`
//! has them all besides, as the text log does: `journalctl` shows nothing else.
//!
//! Entries wait in the log's queue like lines, so a stalled journal blocks nothing else.

use std::{
    borrow::Cow,
    error::Error,
    fmt::{Debug, Write as _},
    io::{self, Write},
    os::unix::net::UnixDatagram,
    path::PathBuf,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::{
    queue::{self, Queue},
    text,
};

/// Where the journal takes entries.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The name that `journalctl -t` finds the daemon by.
const IDENTIFIER: &str = "reflowd";

/// The start of the names of an event's own fields, so that none passes for one of the journal's.
const PREFIX: &str = "REFLOWD_";

/// The longest value of a field, in bytes. What is longer is cut, and says so.
const MAX_VALUE: usize = 32 << 10;

/// The largest entry, in bytes, so that it goes as one datagram: those of Unix sockets may have
/// 208 KiB unless the system is set up otherwise. Fields that do not fit are left out; the
/// message comes first.
const MAX_ENTRY: usize = 128 << 10;

/// The priority of what a person has to act on.
const ERROR: &str = "3";

/// Turns events into entries for the journal.
pub(super) struct Journal {
    to: Queue,
}

impl Journal {
    /// Entries go to a queue that [`JournalSender`] empties.
    pub(super) fn new(to: Queue) -> Self {
        Self { to }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut entry = JournalEntry::new(&text::line(event), priority(*metadata.level()));
        entry.put("TARGET", metadata.target());
        if let Some(file) = metadata.file() {
            entry.put("CODE_FILE", file);
        }
        if let Some(line) = metadata.line() {
            entry.put("CODE_LINE", &line.to_string());
        }
        event.record(&mut entry);
        self.to.add(&entry.framed());
    }
}

/// A text for people as an entry, framed for the queue.
pub(super) fn said(text: &str) -> Vec<u8> {
    JournalEntry::new(text, ERROR).framed()
}

/// The journal's number for a level, as syslog has them.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => ERROR,
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    }
}

/// The bytes before an entry in the queue, which tell its length.
const FRAME: usize = size_of::<u32>();

/// An entry that is being written.
struct JournalEntry(Vec<u8>);

impl JournalEntry {
    fn new(message: &str, priority: &str) -> Self {
        let mut entry = Self(vec![0; FRAME]);
        entry.put("MESSAGE", message);
        entry.put("PRIORITY", priority);
        entry.put("SYSLOG_IDENTIFIER", IDENTIFIER);
        entry
    }

    /// Adds a field. With its length before it, a value may have ends of lines.
    fn put(&mut self, name: &str, value: &str) {
        let value = cut(value);
        if self.0.len() + name.len() + value.len() + size_of::<u64>() + 2 > FRAME + MAX_ENTRY {
            return;
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }

    /// Adds a field of the event, under a name that the journal takes.
    fn put_own(&mut self, field: &Field, value: &str) {
        let name = field.name();
        // The message is there already; what comes by way of the `log` crate says of itself
        // where it comes from.
        if name == "message" || name.starts_with("log.") {
            return;
        }
        let name = name.strip_prefix("r#").unwrap_or(name).replace('.', "_").to_ascii_uppercase();
        let name: String =
            name.chars().filter(|c| matches!(c, 'A'..='Z' | '0'..='9' | '_')).collect();
        self.put(&format!("{PREFIX}{name}"), value);
    }

    /// The entry with its length before it.
    fn framed(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - FRAME).unwrap_or(u32::MAX);
        self.0[..FRAME].copy_from_slice(&length.to_le_bytes());
        self.0
    }
}

/// Cuts a value to the length that an entry allows.
fn cut(value: &str) -> Cow<'_, str> {
    if value.len() <= MAX_VALUE {
        return value.into();
    }
    let kept = &value[..value.floor_char_boundary(MAX_VALUE)];
    format!("{kept}… ({} bytes more)", value.len() - kept.len()).into()
}

impl Visit for JournalEntry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_own(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.put_own(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put_own(field, &format!("{value:?}"));
    }
}

/// Takes entries from the queue to the journal, a datagram for each.
pub(super) struct JournalSender {
    socket: UnixDatagram,
    to: PathBuf,
}

impl JournalSender {
    /// A sender to the journal of this machine.
    ///
    /// # Errors
    /// The journal's socket does not accept entries.
    pub(super) fn new() -> io::Result<Self> {
        Self::to(SOCKET.into())
    }

    fn to(to: PathBuf) -> io::Result<Self> {
        let sender = Self { socket: UnixDatagram::unbound()?, to };
        // An empty datagram means nothing, and arrives only where somebody listens.
        sender.send(&[])?;
        Ok(sender)
    }

    fn send(&self, entry: &[u8]) -> io::Result<()> {
        self.socket.send_to(entry, &self.to).map(drop)
    }
}

/// As the queue has it: whole entries, each with its length before it.
impl Write for JournalSender {
    fn write(&mut self, entries: &[u8]) -> io::Result<usize> {
        let (frame, rest) = entries.split_first_chunk::<FRAME>().expect("an entry has a frame");
        let length = usize::try_from(u32::from_le_bytes(*frame)).expect("32 bits fit");
        match self.send(&rest[..length]) {
            Ok(()) => Ok(FRAME + length),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Err(error)
            }
            // A rejected entry does not affect those behind it.
            Err(_) => {
                queue::lose(1);
                Ok(FRAME + length)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use thiserror::Error;
    use tracing::{info, subscriber::with_default, warn};
    use tracing_subscriber::{layer::SubscriberExt as _, registry};

    use super::*;

    #[derive(Debug, Error)]
    #[error("cannot be read")]
    struct Unread(#[source] io::Error);

    /// A journal that only listens, and the log that goes there.
    fn rig() -> (UnixDatagram, Queue, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let sender = JournalSender::to(path).unwrap();
        assert_eq!(journal.recv(&mut [0; 1]).unwrap(), 0);
        let queue = Queue::start(sender, |_| {}).unwrap();
        (journal, queue, folder)
    }

    /// The fields of an entry, each of which tells the length of its value.
    fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
            let (name, rest) = (&entry[..end], &entry[end + 1..]);
            let (length, rest) = rest.split_first_chunk().unwrap();
            let (value, rest) =
                rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            assert!(fields.insert(text(name), text(value)).is_none());
            entry = &rest[1..];
        }
        fields
    }

    /// The fields of the next entry.
    fn heard(journal: &UnixDatagram) -> BTreeMap<String, String> {
        let mut entry = vec![0; 1 << 20];
        let length = journal.recv(&mut entry).unwrap();
        fields(&entry[..length])
    }

    #[test]
    fn the_message_has_what_the_fields_have() {
        let (journal, queue, _folder) = rig();
        let error = Unread(io::Error::other("no\nroom"));
        with_default(registry().with(Journal::new(queue)), || {
            info!(actor = %"a", module = "relay", r#type = 3, "actor started");
            warn!(error = &error as &dyn Error, read.path = ?"x", "module refused");
        });
        let first = heard(&journal);
        for (name, value) in [
            ("MESSAGE", "actor started actor=a module=\"relay\" type=3"),
            ("PRIORITY", "5"),
            ("SYSLOG_IDENTIFIER", "reflowd"),
            ("REFLOWD_ACTOR", "a"),
            ("REFLOWD_MODULE", "relay"),
            ("REFLOWD_TYPE", "3"),
            ("CODE_FILE", file!()),
        ] {
            assert_eq!(first[name], value, "{first:?}");
        }
        assert!(first["TARGET"].contains("logging::journal"), "{first:?}");
        let second = heard(&journal);
        let message =
            "module refused error=cannot be read error.sources=[no\\nroom] read.path=\"x\"";
        assert_eq!(second["MESSAGE"], message);
        assert_eq!(second["PRIORITY"], "4");
        assert_eq!(second["REFLOWD_ERROR"], "cannot be read: no\nroom", "a field is as it is");
        assert_eq!(second["REFLOWD_READ_PATH"], "\"x\"");
    }

    #[test]
    fn an_entry_is_never_too_large_for_a_datagram() {
        let (journal, queue, _folder) = rig();
        let long = "é".repeat(900_000);
        with_default(registry().with(Journal::new(queue.clone())), || {
            info!(a = long, b = long, c = long, d = long, e = long, "{long}");
        });
        queue.add(&said("next"));
        let first = heard(&journal);
        for name in ["MESSAGE", "REFLOWD_A"] {
            assert!(first[name].starts_with("éééé"), "{name}");
            assert!(first[name].ends_with(" bytes more)"), "{name}");
        }
        assert_eq!(first["PRIORITY"], "5");
        assert!(!first.contains_key("REFLOWD_E"), "there is no room for it");
        let next = heard(&journal);
        assert_eq!((&*next["MESSAGE"], &*next["PRIORITY"]), ("next", "3"));
    }

    #[test]
    fn an_entry_that_nobody_takes_is_counted_and_costs_no_other() {
        let (journal, _queue, folder) = rig();
        let mut sender = JournalSender::to(folder.path().join("socket")).unwrap();
        drop(journal);
        let before = queue::lost_lines();
        let both = [said("one"), said("two")].concat();
        assert_eq!(sender.write(&both).unwrap(), both.len() / 2);
        assert!(queue::lost_lines() > before);
    }
}
