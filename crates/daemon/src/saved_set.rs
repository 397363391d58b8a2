//! What a stop could not drain, on disk until the next start takes it up.
//!
//! All of it is one file, written under another name and renamed, so at every moment
//! there is the whole set or none. A checksum over everything ends the file: one that
//! is torn, damaged or of a newer version is never half read, and is kept aside.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use reflowd_hot_reload::read_own_file;
use reflowd_runtime::{
    ActorName, Envelope, Epoch, EpochState, EventKind, Events, Message, Persistence, Remains,
    State, System, Trace, unix_millis,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tracing::warn;

/// Begins the first line of a set of whatever version.
const TITLE: &[u8] = b"reflowd saved ";

/// The first line of a set that this program writes and reads.
const FIRST_LINE: &[u8] = b"reflowd saved 1\n";

/// The length of the SHA-256 that ends a set.
const CHECKSUM: usize = 32;

/// The length of the number before each record.
const LENGTH: usize = 4;

/// Where the set is, and is made.
pub(crate) struct SavedSets {
    folder: PathBuf,
}

/// A set that a stop has left.
#[derive(Debug, Default)]
pub(crate) struct Saved(BTreeMap<ActorName, Remains>);

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Messages.
    pub(crate) messages: u64,
    /// Actors for which there are any.
    pub(crate) actors: u64,
    /// The length of the file.
    pub(crate) bytes: u64,
}

/// What is left could not be saved.
#[derive(Debug, Error)]
#[error(
    "{messages} messages could not be saved in {folder} and are lost; see that the disk has room and can be written"
)]
pub(crate) struct SaveError {
    /// How many there are.
    pub(crate) messages: u64,
    /// Where they were to go.
    folder: String,
    /// Why they did not.
    pub(crate) source: io::Error,
}

/// A set cannot be read, or not be removed once it was taken up.
#[derive(Debug, Error)]
#[error(
    "what the last stop saved in {path} cannot be {done}; let the user that runs reflowd read and write it, or move it away to start without"
)]
pub(crate) struct TakeUpError {
    path: PathBuf,
    done: &'static str,
    source: io::Error,
}

/// Why a file is not a set that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
enum Unreadable {
    #[error("it is of another version of reflowd")]
    Version,
    #[error("it is damaged")]
    Damaged,
}

impl Saved {
    /// The states that belong to what was queued.
    pub(crate) fn states(&self) -> BTreeMap<ActorName, EpochState> {
        let states = self.0.iter().filter_map(|(name, of)| Some((name.clone(), of.state.clone()?)));
        states.collect()
    }

    /// All of it.
    pub(crate) fn into_remains(self) -> BTreeMap<ActorName, Remains> {
        self.0
    }
}

impl SavedSets {
    /// The sets in a folder, which exists.
    pub(crate) fn open(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// What the last stop has left, if anything. A file that is none is moved aside, which is
    /// told as an event.
    ///
    /// # Errors
    /// It cannot be read at all, or not be moved.
    pub(crate) fn load(&self, events: &Events) -> Result<Option<Saved>, TakeUpError> {
        let path = self.set();
        let bytes = match read_own_file(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(TakeUpError { path, done: "read", source }),
        };
        match decode(&bytes) {
            Ok(saved) => Ok(Some(saved)),
            Err(why) => {
                let aside = self.folder.join(format!("unreadable-{}", unix_millis()));
                if let Err(source) = fs::rename(&path, &aside).and_then(|()| self.sync()) {
                    return Err(TakeUpError { path, done: "moved aside", source });
                }
                warn!(%why, aside = %aside.display(), "what the last stop saved cannot be read; the actors start without");
                let why = format!(
                    "{why}; the actors start without what the last stop saved, which was moved to {}",
                    aside.display()
                );
                events.record(EventKind::DataDamaged { path: path.display().to_string(), why });
                Ok(None)
            }
        }
    }

    /// Takes the set away, so that no crash brings it back.
    ///
    /// # Errors
    /// It is still there, or may be after a crash.
    pub(crate) fn remove(&self) -> Result<(), TakeUpError> {
        let taken = self.folder.join("taken");
        fs::rename(self.set(), &taken)
            .and_then(|()| self.sync())
            .map_err(|source| TakeUpError { path: self.set(), done: "removed", source })?;
        // Nobody reads it under this name.
        _ = fs::remove_file(taken);
        Ok(())
    }

    /// Saves what is left in a system whose actors were stopped, and takes it out of the
    /// books. Gives nothing where nothing is left. Blocks.
    ///
    /// # Errors
    /// It could not be saved. What is left is still in the books.
    pub(crate) fn save(&self, system: &System) -> Result<Option<Contents>, SaveError> {
        let mut remains = system.remains();
        for actor in system.actors() {
            if actor.settings().state != Persistence::Snapshot
                && let Some(of) = remains.get_mut(actor.name())
            {
                of.state = None;
            }
        }
        let messages = remains.values().map(|of| of.messages.len() as u64).sum();
        let actors = remains.values().filter(|of| !of.messages.is_empty()).count() as u64;
        if messages == 0 {
            return Ok(None);
        }
        match self.write(&remains) {
            Ok(bytes) => {
                system.saved();
                Ok(Some(Contents { messages, actors, bytes }))
            }
            Err(source) => {
                _ = fs::remove_file(self.unfinished());
                let folder = self.folder.display().to_string();
                Err(SaveError { messages, folder, source })
            }
        }
    }

    fn write(&self, remains: &BTreeMap<ActorName, Remains>) -> io::Result<u64> {
        let mut open = OpenOptions::new();
        open.write(true).create(true).truncate(true).mode(0o600);
        let mut out =
            Hashing { out: BufWriter::new(open.open(self.unfinished())?), hash: Sha256::new() };
        encode(remains, &mut out)?;
        let Hashing { mut out, hash } = out;
        out.write_all(&hash.finalize())?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        fs::rename(self.unfinished(), self.set())?;
        self.sync()?;
        Ok(bytes)
    }

    fn set(&self) -> PathBuf {
        self.folder.join("set")
    }

    /// The name under which a set is made. Nobody reads it.
    fn unfinished(&self) -> PathBuf {
        self.folder.join(".new")
    }

    /// Brings names to the disk itself.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

/// Reckons the checksum of what is written.
struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// One record of a set. An actor's stands before its messages.
#[derive(Serialize, Deserialize)]
enum Record<'a> {
    #[serde(borrow)]
    Actor(ActorText<'a>),
    #[serde(borrow)]
    Message(MessageText<'a>),
}

#[derive(Serialize, Deserialize)]
struct ActorText<'a> {
    name: Cow<'a, str>,
    /// The state, byte for byte.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    state: Option<Cow<'a, RawValue>>,
    /// The epoch of the state.
    #[serde(default)]
    epoch: Epoch,
}

#[derive(Serialize, Deserialize)]
struct MessageText<'a> {
    port: Cow<'a, str>,
    id: String,
    correlation: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    links: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracestate: Option<Cow<'a, str>>,
    time: u64,
    hops: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    judged: bool,
    /// The message, byte for byte.
    #[serde(borrow)]
    message: Cow<'a, RawValue>,
}

/// Writes all of a set but its checksum.
fn encode(remains: &BTreeMap<ActorName, Remains>, out: &mut impl Write) -> io::Result<()> {
    out.write_all(FIRST_LINE)?;
    for (name, Remains { state, messages }) in remains {
        let epoch = state.as_ref().map(|held| held.epoch).unwrap_or_default();
        let state = state.as_ref().map(|held| raw(held.state.text()));
        let actor = ActorText { name: name.as_str().into(), state, epoch };
        put(&Record::Actor(actor), out)?;
        for envelope in messages {
            put(&Record::Message(MessageText::of(envelope)), out)?;
        }
    }
    Ok(())
}

fn put(record: &Record<'_>, out: &mut impl Write) -> io::Result<()> {
    let text = serde_json::to_vec(record)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&text)
}

/// JSON text as a part of other JSON text.
fn raw(text: &[u8]) -> Cow<'static, RawValue> {
    Cow::Owned(serde_json::from_slice(text).expect("states and messages are JSON"))
}

/// A set from all bytes of its file.
fn decode(bytes: &[u8]) -> Result<Saved, Unreadable> {
    if bytes.starts_with(TITLE) && !bytes.starts_with(FIRST_LINE) {
        return Err(Unreadable::Version);
    }
    let whole = || {
        let (text, sum) = bytes.split_last_chunk::<CHECKSUM>()?;
        let mut rest = text.strip_prefix(FIRST_LINE)?;
        if Sha256::digest(text)[..] != sum[..] {
            return None;
        }
        let mut saved = Saved::default();
        let mut last: Option<&mut Remains> = None;
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk::<LENGTH>()?;
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            let (record, after) = after.split_at_checked(length)?;
            rest = after;
            match serde_json::from_slice(record).ok()? {
                Record::Actor(actor) => {
                    let of = saved.0.entry(actor.name.parse().ok()?).or_default();
                    if let Some(state) = actor.state {
                        let text = Bytes::copy_from_slice(state.get().as_bytes());
                        of.state = Some(EpochState::found(State::kept(text).ok()?, actor.epoch));
                    }
                    last = Some(of);
                }
                Record::Message(message) => last.as_mut()?.messages.push(message.envelope()?),
            }
        }
        Some(saved)
    };
    whole().ok_or(Unreadable::Damaged)
}

impl<'a> MessageText<'a> {
    fn of(envelope: &'a Envelope) -> Self {
        let links = envelope.links.as_deref().unwrap_or_default();
        Self {
            port: envelope.port.as_str().into(),
            id: envelope.id.to_string(),
            correlation: envelope.correlation.to_string(),
            links: links.iter().map(ToString::to_string).collect(),
            traceparent: envelope.traceparent(),
            tracestate: envelope.tracestate().map(Cow::from),
            time: envelope.time,
            hops: envelope.hops,
            replayed: envelope.replayed,
            judged: envelope.judged,
            message: raw(envelope.message.encode().as_bytes()),
        }
    }

    fn envelope(self) -> Option<Envelope> {
        let links: Vec<_> = self.links.iter().map(|l| l.parse().ok()).collect::<Option<_>>()?;
        let message = Bytes::copy_from_slice(self.message.get().as_bytes());
        let trace =
            self.traceparent.and_then(|parent| Trace::of_text(&parent, self.tracestate.as_deref()));
        Some(Envelope {
            id: self.id.parse().ok()?,
            correlation: self.correlation.parse().ok()?,
            links: (!links.is_empty()).then(|| links.into()),
            trace: trace.map(Arc::new),
            time: self.time,
            hops: self.hops,
            port: self.port.parse().ok()?,
            replayed: self.replayed,
            judged: self.judged,
            message: Message::kept(&message, &message).ok()?,
        })
    }
}

#[cfg(test)]
mod tests;
