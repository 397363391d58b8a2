//! The states of actors, written to disk every few seconds and read at the start.
//!
//! A file is replaced by renaming a whole one over it, so at every moment there
//! is either the older state or the newer. What was written last is remembered,
//! and an actor whose state is the same costs nothing. A crash loses what
//! changed since the last round.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use reflowd_hot_reload::read_own_file;
use reflowd_runtime::{Actor, ActorName, Persistence, State, System};
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// From one round to the next.
pub(crate) const EVERY: Duration = Duration::from_secs(2);

/// How long the file of an actor that is gone is kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often the files are looked through for actors that are gone.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// What the files' names end with.
const SUFFIX: &str = ".json";

/// The states of actors on disk.
pub(crate) struct Snapshots {
    folder: PathBuf,
    past: Mutex<Past>,
}

/// What has been done so far.
#[derive(Default)]
struct Past {
    /// The state that each file holds.
    written: BTreeMap<ActorName, State>,
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
    /// The snapshots in a folder, which exists.
    pub(crate) fn open(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), past: Mutex::default() }
    }

    /// The state that an actor had when it was last written.
    ///
    /// A file that holds no state is moved aside, and the actor starts without:
    /// someone may still want to look at it.
    pub(crate) fn load(&self, actor: &ActorName) -> Option<State> {
        let path = self.path(actor);
        let why = match read_own_file(&path) {
            Ok(text) => match State::kept(text) {
                Ok(state) => {
                    self.past.lock().written.insert(actor.clone(), state.clone());
                    return Some(state);
                }
                Err(error) => error.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
        };
        let aside = self.folder.join(format!("{actor}.damaged"));
        let moved = fs::rename(&path, &aside).err().map(tracing::field::display);
        warn!(%actor, why, aside = %aside.display(), moved, "a state on disk is damaged; the actor starts without");
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
            Some(written) => *written == state,
            // Most actors never have a state, and need no file to say so.
            None => state == State::default(),
        };
        if same { Written::Same } else { self.replace_state(past, name, state) }
    }

    fn replace_state(&self, past: &mut Past, name: &ActorName, state: State) -> Written {
        match replace(&self.folder, &self.path(name), state.text()) {
            Ok(()) => {
                past.written.insert(name.clone(), state);
                if past.failing.remove(name) {
                    info!(actor = %name, "the state is written again");
                }
                Written::New
            }
            Err(error) => {
                if past.failing.insert(name.clone()) {
                    let folder = self.folder.display();
                    warn!(actor = %name, %folder, %error, "the state cannot be written; tried again every round");
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

/// Puts a file with that text in place of the one at `path`, whole or not at all.
fn replace(folder: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    // An actor's name never starts with a dot.
    let new = folder.join(".new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    // Otherwise a crash of the machine could leave the name with nothing behind it.
    file.sync_data()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests;
