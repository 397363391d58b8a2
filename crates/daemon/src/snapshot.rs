//! The states of actors, written to disk every few seconds and read at the start.
//!
//! A file is replaced by renaming a whole one over it, so at every moment there
//! is either the older state or the newer. What was written last is remembered,
//! and an actor whose state is the same costs nothing. A crash loses what
//! changed since the last round. Each file is sealed, so that a damaged one is
//! not taken for a state; files of former versions, which were not, are read
//! once and written anew.
//!
//! Each epoch of an actor's state has a file of its own, `ACTOR.json` the first and
//! `ACTOR@NUMBER.json` the others. Which one counts is written with the generations.

mod absences;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use reflowd_hot_reload::{Sealed, StateFiles, read_own_file, seal, unseal};
use reflowd_runtime::{
    Actor, ActorName, Epoch, EpochState, EventKind, Events, Persistence, State, System,
    panic::{Boundary, Pauses},
};
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::absences::Absences;

/// From one round to the next.
pub(crate) const EVERY: Duration = Duration::from_secs(2);

/// How often the files are looked through for actors that are gone.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// The title of what a file holds, with the version of its form.
const TITLE: &str = "reflowd state 1";

/// The suffix of the files.
const SUFFIX: &str = ".json";

/// Separates an actor's name from the number of an epoch.
const MARK: char = '@';

/// The states of actors on disk.
pub(crate) struct Snapshots {
    folder: PathBuf,
    events: Arc<Events>,
    past: Mutex<Past>,
}

/// What has been done so far.
#[derive(Default)]
struct Past {
    /// The state that each actor's file holds.
    written: BTreeMap<ActorName, (Epoch, State)>,
    /// The epochs that there are files of.
    files: BTreeMap<ActorName, BTreeSet<Epoch>>,
    /// Actors whose file is as a former version wrote it, without a checksum.
    bare: BTreeSet<ActorName>,
    /// Actors whose state could not be written, of which has been told.
    failing: BTreeSet<ActorName>,
    absences: Absences,
    swept: Option<Instant>,
}

impl Past {
    /// Whether the file of that name holds the state of a live actor.
    fn is_in_use(&self, name: &str, live: &BTreeSet<ActorName>) -> bool {
        named(name).is_some_and(|(actor, epoch)| {
            let present = self.written.get(&actor).is_none_or(|(present, _)| *present == epoch);
            live.contains(&actor) && present
        })
    }
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
        let folder = folder.into();
        let mut past = Past { absences: Absences::read(&folder), ..Past::default() };
        // A file that cannot be listed cannot be read either.
        for entry in fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            if let Some((actor, epoch)) = entry.file_name().to_str().and_then(named) {
                past.files.entry(actor).or_default().insert(epoch);
            }
        }
        Self { folder, events, past: Mutex::new(past) }
    }

    /// The state that an actor had in an epoch when it was last written; in the last one
    /// that there is a file of, where none is named.
    ///
    /// A file that holds no state is moved aside, and the actor starts without:
    /// someone may still want to look at it.
    pub(crate) fn load(&self, actor: &ActorName, epoch: Option<Epoch>) -> Option<EpochState> {
        let newest = || self.past.lock().files.get(actor)?.last().copied();
        let epoch = epoch.or_else(newest).unwrap_or_default();
        let path = self.path(actor, epoch);
        let why = match read_own_file(&path) {
            Ok(text) => match read(&text) {
                Ok((state, form)) => {
                    let mut past = self.past.lock();
                    past.written.insert(actor.clone(), (epoch, state.clone()));
                    if form == FileForm::Bare {
                        past.bare.insert(actor.clone());
                    }
                    return Some(EpochState::found(state, epoch));
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
            round.count(self.write_state(&mut past, actor.name(), actor.epoch_state()));
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
                    self.remove(&mut past, &name, |_| true);
                }
                None => _ = known.insert(name),
            }
        }
        past.written.retain(|name, _| known.contains(name));
        past.bare.retain(|name| known.contains(name));
        past.failing.retain(|name| known.contains(name));
        for name in past.absences.names() {
            if past.is_in_use(&name, &live) {
                past.absences.end(&name);
            }
        }
        let now = Instant::now();
        if past.swept.is_none_or(|at| now.duration_since(at) >= SWEEP_EVERY) {
            past.swept = Some(now);
            self.sweep(&mut past, &live, now);
        }
        round
    }

    /// Writes one actor's state now: whether what is on disk is what it has. Blocks.
    pub(crate) fn write(&self, actor: &Actor) -> bool {
        let mut past = self.past.lock();
        // The file may be from before the actor went and came back.
        let (name, state) = (actor.name(), actor.epoch_state());
        if !past.written.contains_key(name) && self.path(name, state.epoch).exists() {
            return self.replace_state(&mut past, name, state) != Written::Failed;
        }
        self.write_state(&mut past, name, state) != Written::Failed
    }

    /// Writes a state that is another than what is on disk.
    fn write_state(&self, past: &mut Past, name: &ActorName, state: EpochState) -> Written {
        let same = match past.written.get(name) {
            Some((epoch, written)) => {
                (*epoch, written) == (state.epoch, &state.state) && !past.bare.contains(name)
            }
            // Most actors never have a state, and need no file to say so.
            None => state.state == State::default(),
        };
        if same { Written::Same } else { self.replace_state(past, name, state) }
    }

    fn replace_state(&self, past: &mut Past, name: &ActorName, state: EpochState) -> Written {
        let EpochState { state, epoch, turns: _ } = state;
        match replace(&self.folder, &self.path(name, epoch), TITLE, state.text()) {
            Ok(()) => {
                past.files.entry(name.clone()).or_default().insert(epoch);
                past.written.insert(name.clone(), (epoch, state));
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
                    let seconds = EVERY.as_secs();
                    let why = format!("{folder}: {error}; tried again every {seconds} s");
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
        let mut pauses = Pauses::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let (snapshots, system) = (Arc::clone(&self), system.clone());
            match Boundary::States.aside(move || snapshots.write_changed(&system)).await {
                Ok(_) => {
                    pauses.succeeded();
                    Boundary::States.works();
                }
                // The states written so far are recorded; the next round writes the rest.
                Err(_) => ticks.reset_after(Boundary::States.again_after(&mut pauses)),
            }
        }
    }

    fn path(&self, actor: &ActorName, epoch: Epoch) -> PathBuf {
        // No actor has the mark in its name.
        let name = match epoch {
            Epoch::FIRST => format!("{actor}{SUFFIX}"),
            later => format!("{actor}{MARK}{later}{SUFFIX}"),
        };
        self.folder.join(name)
    }

    /// Removes the files of those epochs.
    fn remove(&self, past: &mut Past, actor: &ActorName, which: impl Fn(Epoch) -> bool) {
        let Some(files) = past.files.get_mut(actor) else { return };
        files.retain(|epoch| {
            // A file that cannot be removed is removed when it is old.
            let remove = which(*epoch);
            if remove {
                _ = fs::remove_file(self.path(actor, *epoch));
            }
            !remove
        });
        if files.is_empty() {
            past.files.remove(actor);
        }
    }

    /// Removes the files of actors that have been gone for long.
    fn sweep(&self, past: &mut Past, live: &BTreeSet<ActorName>, now: Instant) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let gone = names.filter(|name| named(name).is_some() && !past.is_in_use(name, live));
        let gone = gone.collect();
        for name in past.absences.look(gone, now) {
            let Some((actor, epoch)) = named(&name) else { continue };
            // One that cannot be removed is tried again.
            if fs::remove_file(self.folder.join(&name)).is_ok() {
                past.absences.end(&name);
                past.files.entry(actor.clone()).or_default().remove(&epoch);
                info!(%actor, "the state of an actor that is long gone was removed");
            }
        }
        // Where it cannot be noted, they are kept longer.
        _ = past.absences.write(&self.folder);
    }
}

impl StateFiles for Snapshots {
    fn found(&self, actor: &ActorName, epoch: Option<Epoch>) -> Option<EpochState> {
        self.load(actor, epoch)
    }

    fn begin(&self, actor: &ActorName, state: &EpochState) -> io::Result<()> {
        let mut past = self.past.lock();
        replace(&self.folder, &self.path(actor, state.epoch), TITLE, state.state.text())?;
        past.files.entry(actor.clone()).or_default().insert(state.epoch);
        // Its name has to be on disk before anything that follows from it.
        File::open(&self.folder)?.sync_all()
    }

    fn settle(&self, actor: &ActorName, epoch: Epoch) {
        self.remove(&mut self.past.lock(), actor, |other| other != epoch);
    }
}

/// The actor and the epoch that a file is of, by its name.
fn named(name: &str) -> Option<(ActorName, Epoch)> {
    let name = name.strip_suffix(SUFFIX)?;
    let (actor, epoch) = match name.split_once(MARK) {
        Some((actor, number)) => (actor, Epoch::numbered(number.parse().ok()?)),
        None => (name, Epoch::FIRST),
    };
    Some((actor.parse().ok()?, epoch))
}

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileForm {
    Sealed,
    /// As former versions wrote it: the state and nothing else.
    Bare,
}

/// The state that a file holds, or what is wrong with it.
fn read(text: &[u8]) -> Result<(State, FileForm), String> {
    let (text, form) = match unseal(text) {
        Ok(Sealed { title: TITLE, content }) => (content, FileForm::Sealed),
        Ok(Sealed { title, .. }) => {
            return Err(format!("another version of reflowd has written it, as `{title}`"));
        }
        Err(broken) if text.first() != Some(&b'{') => return Err(broken.to_string()),
        Err(_) => (text, FileForm::Bare),
    };
    let state = State::kept(text.to_vec()).map_err(|error| error.to_string())?;
    Ok((state, form))
}

/// Puts a sealed file in place of the one at `path`, whole or not at all.
fn replace(folder: &Path, path: &Path, title: &str, content: &[u8]) -> io::Result<()> {
    // An actor's name never starts with a dot.
    let new = folder.join(".new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    seal(title, content, &mut file)?;
    // Otherwise a crash of the machine could leave the name with nothing behind it.
    file.sync_data()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests;
