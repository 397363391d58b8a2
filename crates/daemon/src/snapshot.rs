//! The states of actors, written to disk every few seconds and read at the start.
//!
//! A file is replaced by renaming a whole one over it, so at every moment there
//! is either the older state or the newer. What was written last is remembered,
//! and an actor whose state is the same costs nothing. A crash loses what
//! changed since the last round. Each file is sealed, so that a damaged one is
//! not taken for a state; files of former versions, which were not, are read
//! once and written anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use reflowd_hot_reload::{Sealed, read_own_file, seal, unseal};
use reflowd_runtime::{Actor, ActorName, EventKind, Events, Persistence, State, System};
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// From one round to the next.
pub(crate) const EVERY: Duration = Duration::from_secs(2);

/// How long the file of an actor that is gone is kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often the files are looked through for actors that are gone.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// The title of what a file holds, with the version of its form.
const TITLE: &str = "reflowd state 1";

/// What the files' names end with.
const SUFFIX: &str = ".json";

/// The states of actors on disk.
pub(crate) struct Snapshots {
    folder: PathBuf,
    events: Arc<Events>,
    past: Mutex<Past>,
}

/// What has been done so far.
#[derive(Default)]
struct Past {
    /// The state that each file holds.
    written: BTreeMap<ActorName, State>,
    /// Actors whose file is as a former version wrote it, without a checksum.
    bare: BTreeSet<ActorName>,
    /// Actors whose state could not be written, of which has been told.
    failing: BTreeSet<ActorName>,
    swept: Option<Instant>,
}

/// What one round has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// States that had changed and were written.
    pub(crate) written: usize,
    /// States that could not be written; the log says why.
    pub(crate) failed: usize,
}

impl Round {
    fn count(&mut self, written: Written) {
        match written {
            Written::Same => {}
            Written::New => self.written += 1,
            Written::Failed => self.failed += 1,
        }
    }
}

/// What became of one actor's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// It is on disk as it is.
    Same,
    /// It is on disk now.
    New,
    /// It cannot be written; the log says why.
    Failed,
}

impl Snapshots {
    /// The snapshots in a folder, which exists. What is wrong with them is told as events.
    pub(crate) fn open(folder: impl Into<PathBuf>, events: Arc<Events>) -> Self {
        Self { folder: folder.into(), events, past: Mutex::default() }
    }

    /// The state that an actor had when it was last written.
    ///
    /// A file that holds no state is moved aside, and the actor starts without:
    /// someone may still want to look at it.
    pub(crate) fn load(&self, actor: &ActorName) -> Option<State> {
        let path = self.path(actor);
        let why = match read_own_file(&path) {
            Ok(text) => match read(&text) {
                Ok((state, form)) => {
                    let mut past = self.past.lock();
                    past.written.insert(actor.clone(), state.clone());
                    if form == Form::Bare {
                        past.bare.insert(actor.clone());
                    }
                    return Some(state);
                }
                Err(why) => why,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
        };
        let aside = self.folder.join(format!("{actor}.damaged"));
        let moved = fs::rename(&path, &aside).err().map(tracing::field::display);
        warn!(%actor, why, aside = %aside.display(), moved, "a state on disk is damaged; the actor starts without");
        let why = format!(
            "{why}; `{actor}` starts without its state, which was moved to {}",
            aside.display()
        );
        self.events.record(EventKind::DataDamaged { path: path.display().to_string(), why });
        None
    }

    /// Writes the states that have changed since the last round. Blocks.
    pub(crate) fn write_changed(&self, system: &System) -> Round {
        let mut round = Round::default();
        let mut past = self.past.lock();
        let mut live = BTreeSet::new();
        for actor in system.actors() {
            if actor.settings().state != Persistence::Snapshot {
                continue;
            }
            live.insert(actor.name().clone());
            round.count(self.write_state(&mut past, actor.name(), actor.state()));
        }
        // Asked for after the live ones: what goes in between is in both and not in neither.
        let mut known = live.clone();
        for (name, state) in system.left_states() {
            match state {
                _ if live.contains(&name) => {}
                Some(state) => {
                    round.count(self.write_state(&mut past, &name, state));
                    known.insert(name);
                }
                // The heir's file has it, if that could be written.
                None if round.failed == 0 && past.written.contains_key(&name) => {
                    _ = fs::remove_file(self.path(&name));
                }
                None => _ = known.insert(name),
            }
        }
        past.written.retain(|name, _| known.contains(name));
        past.bare.retain(|name| known.contains(name));
        past.failing.retain(|name| known.contains(name));
        let now = Instant::now();
        if past.swept.is_none_or(|at| now.duration_since(at) >= SWEEP_EVERY) {
            past.swept = Some(now);
            self.sweep(&live, SystemTime::now());
        }
        round
    }

    /// Writes one actor's state now: whether what is on disk is what it has. Blocks.
    pub(crate) fn write(&self, actor: &Actor) -> bool {
        let mut past = self.past.lock();
        // The file may be from before the actor went and came back.
        if !past.written.contains_key(actor.name()) && self.path(actor.name()).exists() {
            return self.replace_state(&mut past, actor.name(), actor.state()) != Written::Failed;
        }
        self.write_state(&mut past, actor.name(), actor.state()) != Written::Failed
    }

    /// Writes a state that is another than what is on disk.
    fn write_state(&self, past: &mut Past, name: &ActorName, state: State) -> Written {
        let same = match past.written.get(name) {
            Some(written) => *written == state && !past.bare.contains(name),
            // Most actors never have a state, and need no file to say so.
            None => state == State::default(),
        };
        if same { Written::Same } else { self.replace_state(past, name, state) }
    }

    fn replace_state(&self, past: &mut Past, name: &ActorName, state: State) -> Written {
        match replace(&self.folder, &self.path(name), state.text()) {
            Ok(()) => {
                past.written.insert(name.clone(), state);
                past.bare.remove(name);
                if past.failing.remove(name) {
                    info!(actor = %name, "the state is written again");
                    self.events.record(EventKind::StateWritten { actor: name.clone() });
                }
                Written::New
            }
            Err(error) => {
                if past.failing.insert(name.clone()) {
                    let folder = self.folder.display();
                    warn!(actor = %name, %folder, %error, "the state cannot be written; tried again every round");
                    let why = format!("{folder}: {error}; tried again every 2 s");
                    self.events.record(EventKind::StateNotWritten { actor: name.clone(), why });
                }
                Written::Failed
            }
        }
    }

    /// Does a round every [`EVERY`] until it is stopped. The last round, after the
    /// last turn, is the caller's.
    pub(crate) async fn keep(self: Arc<Self>, system: System, stop: CancellationToken) {
        let mut ticks = time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let (snapshots, system) = (Arc::clone(&self), system.clone());
            let round = tokio::task::spawn_blocking(move || snapshots.write_changed(&system));
            round.await.expect("a round does not panic");
        }
    }

    fn path(&self, actor: &ActorName) -> PathBuf {
        self.folder.join(format!("{actor}{SUFFIX}"))
    }

    /// Removes the files of actors that have been gone for long.
    ///
    /// A live actor's file is marked as of now, so a file's age is how long its
    /// actor has been gone, restarts of the daemon in between or not.
    fn sweep(&self, live: &BTreeSet<ActorName>, now: SystemTime) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let actor = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok());
            let Some::<ActorName>(actor) = actor else { continue };
            let path = entry.path();
            // A file that cannot be marked or removed is only kept too short or too long.
            if live.contains(&actor) {
                _ = File::options().write(true).open(&path).and_then(|file| file.set_modified(now));
                continue;
            }
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age >= KEPT) && fs::remove_file(&path).is_ok() {
                info!(%actor, "the state of an actor that is long gone was removed");
            }
        }
    }
}

/// How a file holds its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Sealed,
    /// As former versions wrote it: the state and nothing else.
    Bare,
}

/// The state that a file holds, or what is wrong with it.
fn read(text: &[u8]) -> Result<(State, Form), String> {
    let (text, form) = match unseal(text) {
        Ok(Sealed { title: TITLE, content }) => (content, Form::Sealed),
        Ok(Sealed { title, .. }) => {
            return Err(format!("another version of reflowd has written it, as `{title}`"));
        }
        Err(broken) if text.first() != Some(&b'{') => return Err(broken.to_string()),
        Err(_) => (text, Form::Bare),
    };
    let state = State::kept(text.to_vec()).map_err(|error| error.to_string())?;
    Ok((state, form))
}

/// Puts a file with that state in place of the one at `path`, whole or not at all.
fn replace(folder: &Path, path: &Path, state: &[u8]) -> io::Result<()> {
    // An actor's name never starts with a dot.
    let new = folder.join(".new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    seal(TITLE, state, &mut file)?;
    // Otherwise a crash of the machine could leave the name with nothing behind it.
    file.sync_data()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests;
