//! What a daemon remembers of its actors across restarts: `generations.json`.
//!
//! One file in the data folder, replaced as a whole by a rename, so that it is the old
//! one or the new one whenever the process ends. It holds its content twice, each under a
//! seal of its own: where one is damaged the other is used, and that is said.
//!
//! Where neither can be used, the file is put aside. A version that was banned must not
//! come to life by that, and which one it was is no longer known: so no actor starts
//! with a module that is kept from before, until other bytes come or an operator forces it.
//!
//! Environments may be secret and are not written. A keyed hash tells whether the
//! environment that the configuration gives now is the one that a generation had; if
//! it is not, that generation can no longer be had.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    fs::{self, File},
    hash::{BuildHasher, Hasher},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use reflowd_runtime::{ActorName, Digest, EnginePer, Epoch, Generation, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{
    ActorSpec, Ban, Former, GenerationKeys, LeftBehind, ModuleRef, PutAside, PutAsideState,
    RunningActor, Sealed, read_own_file, seal, unseal,
};

/// The title of what the file holds, with the version of its form.
const TITLE: &str = "reflowd generations 2";

/// The form before it: the bare content, with its version and without a checksum.
const BARE_VERSION: u64 = 1;

const NAME: &str = "generations.json";

/// Where an unreadable file goes.
const ASIDE: &str = "generations.json.unread";

/// The file, and what it said when the daemon started of actors that have not run yet.
#[derive(Debug)]
pub struct History {
    folder: PathBuf,
    key: String,
    actors: BTreeMap<ActorName, Stored>,
    past: Past,
    written: Option<String>,
}

/// Modules that must not start by themselves, according to an earlier process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// All that was banned is known; these modules are suspects from an earlier loss.
    Known(BTreeSet<Digest>),
    /// There was a file and it says nothing: any module that has run may have been banned.
    Lost,
}

/// The file of an earlier process is damaged or not used.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// One of its two copies is damaged; the other was used, so nothing is lost.
    #[error("{} is damaged; its second copy is whole and was used", path.display())]
    Mended {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {}; it was put aside", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another version of reflowd has written it.
    #[error("{} was written by another version of reflowd, as `{title}`; it was put aside", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// The title in the file.
        title: String,
    },
    /// It is damaged.
    #[error("{} is damaged and was put aside", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl HistoryError {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Mended { path }
            | Self::Read { path, .. }
            | Self::Other { path, .. }
            | Self::Damaged { path } => path,
        }
    }

    /// Whether generations and bans are still known.
    #[must_use]
    pub fn is_mended(&self) -> bool {
        matches!(self, Self::Mended { .. })
    }
}

/// The file cannot be written.
#[derive(Debug, Error)]
#[error("cannot write {}", path.display())]
pub struct WriteHistoryError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// What an earlier process has left of an actor.
#[derive(Debug)]
pub(crate) struct Recollection {
    /// The last generation that passed, where it can be run as it was.
    pub(crate) last: Option<RunningActor>,
    /// The last number that the actor had.
    pub(crate) generation: Generation,
    pub(crate) former: Vec<Former>,
    pub(crate) bans: Vec<Ban>,
    /// The epoch of its state.
    pub(crate) epoch: Epoch,
    /// The module that has left that state.
    pub(crate) ran: Option<Ran>,
}

/// The module that an actor ran last, which has left its state.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Ran {
    digest: String,
    /// The version that it gave itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
}

impl Ran {
    pub(crate) fn new(digest: &Digest, version: Option<String>) -> Self {
        Self { digest: digest.to_string(), version }
    }

    pub(crate) fn digest(&self) -> Option<Digest> {
        self.digest.parse().ok()
    }
}

/// What is remembered of an actor that runs.
pub(crate) struct Remembered<'a> {
    pub(crate) running: &'a RunningActor,
    /// The last generation that passed, where that is not the one that runs.
    pub(crate) judge: Option<&'a Former>,
    pub(crate) former: &'a [Former],
    pub(crate) bans: &'a [Ban],
    /// The epoch of its state.
    pub(crate) epoch: Epoch,
    /// The version that its module gives itself.
    pub(crate) version: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Text {
    key: String,
    actors: BTreeMap<ActorName, Stored>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    suspects: BTreeSet<Digest>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Stored {
    generation: u64,
    autostarted: bool,
    passed: StoredGeneration,
    former: Vec<StoredGeneration>,
    bans: Vec<StoredBan>,
    /// Former versions of this program knew no other epoch than the first.
    #[serde(default)]
    epoch: Epoch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ran: Option<Ran>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct StoredGeneration {
    generation: u64,
    digest: Digest,
    module: StoredModule,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    keys: StoredKeys,
    /// Nothing where that is not known, or where the generation has left nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<StoredLeft>,
}

/// The fate of the state that a former generation has left.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum StoredLeft {
    GoneOn,
    Migrated {
        /// The digest of the former state. Nothing where it was not to be written: it is
        /// gone with the process, and what is left is an empty one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<Digest>,
        since: u64,
    },
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum StoredModule {
    Stem(String),
    Path(PathBuf),
    Url(String),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct StoredBan {
    digest: Digest,
    keys: StoredKeys,
    why: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct StoredKeys {
    config: Map<String, Value>,
    /// The keyed hash of the environment.
    env: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entry_point: Option<String>,
    memory: u64,
    allow_hosts: Vec<String>,
    engine_per: EnginePer,
}

impl History {
    /// What the data folder says of an earlier process, and what is wrong with it.
    #[must_use]
    pub fn open(data: &Path) -> (Self, Option<HistoryError>) {
        let folder = data.to_owned();
        let fresh = |past| Self {
            folder: folder.clone(),
            key: fresh_key(),
            actors: BTreeMap::new(),
            past,
            written: None,
        };
        let path = folder.join(NAME);
        let read = match read_own_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return (fresh(Past::Known(BTreeSet::new())), None);
            }
            Err(source) => Err(HistoryError::Read { path: path.clone(), source }),
            Ok(text) => read(&text).map_err(|unread| unread.at(&path)),
        };
        match read {
            Ok((Text { key, actors, suspects }, wholeness)) => {
                let trouble = match wholeness {
                    Wholeness::Whole => None,
                    Wholeness::OneCopy => Some(HistoryError::Mended { path }),
                };
                (Self { folder, key, actors, past: Past::Known(suspects), written: None }, trouble)
            }
            Err(error) => {
                // Where even that fails, the next write replaces it.
                _ = fs::rename(&path, folder.join(ASIDE));
                (fresh(Past::Lost), Some(error))
            }
        }
    }

    /// Modules that must not start by themselves.
    pub(crate) fn past(&self) -> &Past {
        &self.past
    }

    /// The actors of which something is known that have not run yet.
    pub(crate) fn actors(&self) -> impl Iterator<Item = (&ActorName, bool)> {
        self.actors.iter().map(|(name, stored)| (name, stored.autostarted))
    }

    /// What is known of an actor, for what the configuration asks of it now.
    pub(crate) fn recollect(&self, actor: &ActorName, spec: &ActorSpec) -> Option<Recollection> {
        let stored = self.actors.get(actor)?;
        let former = |stored: &StoredGeneration| self.former(stored, spec);
        let last = former(&stored.passed).map(|last| RunningActor {
            spec: last.spec,
            digest: last.digest,
            generation: last.generation,
            autostarted: stored.autostarted,
            draining: false,
        });
        let ban = |stored: &StoredBan| {
            let (digest, keys) = (stored.digest, self.keys(&stored.keys, spec)?);
            Some(Ban { digest, keys, why: stored.why.clone() })
        };
        Some(Recollection {
            last,
            generation: Generation::numbered(stored.generation),
            former: stored.former.iter().filter_map(former).collect(),
            bans: stored.bans.iter().filter_map(ban).collect(),
            epoch: stored.epoch,
            ran: stored.ran.clone(),
        })
    }

    fn former(&self, stored: &StoredGeneration, spec: &ActorSpec) -> Option<Former> {
        let module = match stored.module.clone() {
            StoredModule::Stem(stem) => ModuleRef::Stem { stem, pin: None },
            StoredModule::Path(path) => ModuleRef::Path { path, pin: None },
            StoredModule::Url(url) => {
                ModuleRef::Url { url: url.parse().ok()?, sha256: stored.digest }
            }
        };
        Some(Former {
            generation: Generation::numbered(stored.generation),
            digest: stored.digest,
            spec: ActorSpec {
                module,
                keys: self.keys(&stored.keys, spec)?,
                version: stored.version.clone(),
                ..spec.clone()
            },
            left: left_behind(stored.left.as_ref()),
        })
    }

    fn keys(&self, stored: &StoredKeys, spec: &ActorSpec) -> Option<GenerationKeys> {
        let nothing = BTreeMap::new();
        let known = [&spec.keys.env, &nothing].into_iter();
        let env = known.into_iter().find(|env| self.hash(env) == stored.env)?.clone();
        Some(GenerationKeys {
            config: stored.config.clone(),
            env,
            entry_point: stored.entry_point.clone(),
            memory: stored.memory,
            allow_hosts: stored.allow_hosts.clone(),
            engine_per: stored.engine_per,
        })
    }

    /// The file as it should be: what runs, what is known of those that are `asked` for
    /// and have not run yet, and the suspects. Nothing, where it is so already.
    pub(crate) fn next(
        &mut self,
        running: &BTreeMap<ActorName, Remembered<'_>>,
        asked: impl Fn(&ActorName) -> bool,
        suspects: &BTreeSet<Digest>,
    ) -> Option<Writing> {
        self.actors.retain(|name, _| !running.contains_key(name) && asked(name));
        let store =
            |(name, actor): (&ActorName, &Remembered<'_>)| Some((name.clone(), self.store(actor)?));
        let waiting = self.actors.iter().map(|(name, stored)| (name.clone(), stored.clone()));
        let actors = running.iter().filter_map(store).chain(waiting).collect();
        let text = Text { key: self.key.clone(), actors, suspects: suspects.clone() };
        let text = serde_json::to_string_pretty(&text).expect("strings and numbers can be encoded");
        let news = self.written.as_ref() != Some(&text);
        news.then(|| Writing { folder: self.folder.clone(), text })
    }

    /// The file was written.
    pub(crate) fn wrote(&mut self, writing: Writing) {
        self.written = Some(writing.text);
    }

    fn store(&self, actor: &Remembered<'_>) -> Option<Stored> {
        let Remembered { running, judge, former, bans, epoch, version } = actor;
        let generation = |number: Generation, digest: &Digest, spec: &ActorSpec, left| {
            let module = match &spec.module {
                ModuleRef::Stem { stem, .. } => StoredModule::Stem(stem.clone()),
                ModuleRef::Path { path, .. } => StoredModule::Path(path.clone()),
                ModuleRef::Url { url, .. } => StoredModule::Url(url.as_str().to_owned()),
                ModuleRef::Builtin { .. } => return None,
            };
            Some(StoredGeneration {
                generation: number.number(),
                digest: *digest,
                module,
                version: spec.version.clone(),
                keys: self.store_keys(&spec.keys),
                left,
            })
        };
        let passed = match judge {
            Some(judge) => generation(judge.generation, &judge.digest, &judge.spec, None),
            None => generation(running.generation, &running.digest, &running.spec, None),
        };
        let former = former
            .iter()
            .filter_map(|f| generation(f.generation, &f.digest, &f.spec, store_left(&f.left)));
        let ban = |ban: &Ban| StoredBan {
            digest: ban.digest,
            keys: self.store_keys(&ban.keys),
            why: ban.why.clone(),
        };
        Some(Stored {
            generation: running.generation.number(),
            autostarted: running.autostarted,
            passed: passed?,
            former: former.collect(),
            bans: bans.iter().map(ban).collect(),
            epoch: *epoch,
            ran: Some(Ran::new(&running.digest, version.clone())),
        })
    }

    /// The former states that those need of which something is known and that have not
    /// run yet.
    pub(crate) fn states(&self) -> BTreeSet<Digest> {
        let former = self.actors.values().flat_map(|stored| &stored.former);
        let states = former.filter_map(|former| match former.left.as_ref()? {
            StoredLeft::GoneOn => None,
            StoredLeft::Migrated { state, .. } => *state,
        });
        states.collect()
    }

    fn store_keys(&self, keys: &GenerationKeys) -> StoredKeys {
        let GenerationKeys { config, env, entry_point, memory, allow_hosts, engine_per } = keys;
        StoredKeys {
            config: config.clone(),
            env: self.hash(env),
            entry_point: entry_point.clone(),
            memory: *memory,
            allow_hosts: allow_hosts.clone(),
            engine_per: *engine_per,
        }
    }

    fn hash(&self, env: &BTreeMap<String, String>) -> String {
        let env = serde_json::to_vec(env).expect("a map of strings can be encoded");
        let hash = Sha256::new().chain_update(&self.key).chain_update(env).finalize();
        Digest::new(hash.into()).to_string()
    }
}

fn left_behind(stored: Option<&StoredLeft>) -> LeftBehind {
    match stored {
        None => LeftBehind::Unsaid,
        Some(StoredLeft::GoneOn) => LeftBehind::GoneOn,
        Some(StoredLeft::Migrated { state, since }) => {
            let state = match state {
                Some(digest) => PutAsideState::OnDisk(*digest),
                None => PutAsideState::InMemory(State::default()),
            };
            LeftBehind::Migrated(PutAside { state, since: *since, turns: 0 })
        }
    }
}

fn store_left(left: &LeftBehind) -> Option<StoredLeft> {
    match left {
        LeftBehind::Unsaid => None,
        LeftBehind::GoneOn => Some(StoredLeft::GoneOn),
        LeftBehind::Migrated(PutAside { state, since, turns: _ }) => {
            let state = match state {
                PutAsideState::OnDisk(digest) => Some(*digest),
                PutAsideState::InMemory(_) => None,
            };
            Some(StoredLeft::Migrated { state, since: *since })
        }
    }
}

/// The file's next text.
pub(crate) struct Writing {
    folder: PathBuf,
    text: String,
}

impl Writing {
    /// Replaces the file. When this returns, that outlives a loss of power.
    ///
    /// # Errors
    /// The folder takes no file; the old one is still there.
    pub(crate) fn write(&self) -> Result<(), WriteHistoryError> {
        let path = self.folder.join(NAME);
        let temporary = self.folder.join(format!(".{NAME}.tmp"));
        let write = || {
            let mut options = File::options();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            let mut copy = Vec::new();
            seal(TITLE, self.text.as_bytes(), &mut copy)?;
            file.write_all(&copy)?;
            file.write_all(&copy)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        let written = write().inspect_err(|_| _ = fs::remove_file(&temporary));
        written.map_err(|source| WriteHistoryError { path, source })
    }
}

/// The condition of a file that could be read.
enum Wholeness {
    Whole,
    /// Its other copy is damaged.
    OneCopy,
}

enum Unread {
    Other(String),
    Damaged,
}

impl Unread {
    fn at(self, path: &Path) -> HistoryError {
        let path = path.to_owned();
        match self {
            Self::Other(title) => HistoryError::Other { path, title },
            Self::Damaged => HistoryError::Damaged { path },
        }
    }
}

/// Reads the file from an intact copy in it.
fn read(text: &[u8]) -> Result<(Text, Wholeness), Unread> {
    let (first, second) = text.split_at(text.len() / 2);
    if let (Ok(sealed), true) = (unseal(first), first == second) {
        return Ok((understand(sealed)?, Wholeness::Whole));
    }
    // A file that was cut has its middle elsewhere; the first copy ends with the array's end.
    let end = text.windows(END.len()).position(|bytes| bytes == END);
    let cut = end.map(|at| &text[..at + END.len()]);
    let copies = [Some(first), Some(second), cut];
    match copies.into_iter().flatten().find_map(|copy| unseal(copy).ok()) {
        Some(sealed) => Ok((understand(sealed)?, Wholeness::OneCopy)),
        None => read_bare(text).map(|text| (text, Wholeness::Whole)).ok_or(Unread::Damaged),
    }
}

/// The last line of sealed text, which JSON as it is written here has nowhere else.
const END: &[u8] = b"\n]\n";

fn understand(sealed: Sealed<'_>) -> Result<Text, Unread> {
    if sealed.title != TITLE {
        return Err(Unread::Other(sealed.title.to_owned()));
    }
    serde_json::from_slice(sealed.content).map_err(|_| Unread::Damaged)
}

/// The form of former versions. It is written anew as what is read now.
fn read_bare(text: &[u8]) -> Option<Text> {
    let bare: Value = serde_json::from_slice(text).ok()?;
    (bare["version"].as_u64()? == BARE_VERSION).then(|| serde_json::from_value(bare).ok()).flatten()
}

/// Random numbers that the system seeds the standard library's hashers with.
fn fresh_key() -> String {
    let number = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", number(), number())
}

#[cfg(test)]
mod tests {
    use reflowd_runtime::Settings;
    use tempfile::TempDir;

    use super::*;

    fn name(text: &str) -> ActorName {
        text.parse().unwrap()
    }

    fn spec(secret: &str) -> ActorSpec {
        ActorSpec {
            module: ModuleRef::Stem { stem: "module".into(), pin: None },
            keys: GenerationKeys {
                env: [("PASSWORD".to_owned(), secret.to_owned())].into(),
                ..GenerationKeys::default()
            },
            settings: Settings::default(),
            version: Some("1".into()),
            was: None,
            origin: "flow:1".into(),
        }
    }

    fn digest(number: u8) -> Digest {
        Digest::new([number; 32])
    }

    fn running() -> RunningActor {
        let generation = Generation::numbered(3);
        let (spec, digest) = (spec("s3cret"), digest(3));
        RunningActor { spec, digest, generation, autostarted: false, draining: false }
    }

    /// A file that knows of one actor, on trial in its third generation.
    fn written() -> TempDir {
        let data = TempDir::new().unwrap();
        let (mut history, trouble) = History::open(data.path());
        assert!(trouble.is_none());
        let aside = PutAside { state: PutAsideState::OnDisk(digest(7)), since: 1_000, turns: 12 };
        let judge = Former {
            generation: Generation::FIRST,
            digest: digest(1),
            spec: spec("s3cret"),
            left: LeftBehind::Migrated(aside),
        };
        let ban = Ban { digest: digest(2), keys: spec("s3cret").keys, why: "trapped".into() };
        let running = running();
        let remembered = Remembered {
            running: &running,
            judge: Some(&judge),
            former: std::slice::from_ref(&judge),
            bans: std::slice::from_ref(&ban),
            epoch: Epoch::numbered(2),
            version: Some("1.2.3".into()),
        };
        let all = [(name("a"), remembered)].into();
        let writing = history.next(&all, |_| true, &BTreeSet::new()).unwrap();
        writing.write().unwrap();
        history.wrote(writing);
        assert!(history.next(&all, |_| true, &BTreeSet::new()).is_none(), "nothing is new");
        data
    }

    #[test]
    fn what_was_written_is_known_again() {
        let data = written();
        let (history, trouble) = History::open(data.path());
        assert!(trouble.is_none());
        let known = history.recollect(&name("a"), &spec("s3cret")).unwrap();
        let last = known.last.unwrap();
        assert_eq!((last.digest, last.generation), (digest(1), Generation::FIRST));
        assert_eq!(last.spec, spec("s3cret"));
        assert_eq!(known.generation.number(), 3);
        assert_eq!((known.former.len(), known.bans.len()), (1, 1));
        assert_eq!(known.bans[0].keys, spec("s3cret").keys);
        assert_eq!(known.epoch, Epoch::numbered(2));
        assert_eq!(known.ran, Some(Ran::new(&digest(3), Some("1.2.3".into()))));
        // The turns were those of the process that has ended.
        let aside = PutAside { state: PutAsideState::OnDisk(digest(7)), since: 1_000, turns: 0 };
        assert_eq!(known.former[0].left, LeftBehind::Migrated(aside));
        assert_eq!(history.states(), [digest(7)].into());
    }

    #[test]
    fn what_a_former_version_has_written_says_nothing_of_states() {
        let data = written();
        let text = fs::read_to_string(data.path().join(NAME)).unwrap();
        let mut copies = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        let mut text = copies.next().unwrap().unwrap()[2].take();
        text["version"] = BARE_VERSION.into();
        let actor = text["actors"]["a"].as_object_mut().unwrap();
        actor.remove("epoch");
        actor.remove("ran");
        actor["former"][0].as_object_mut().unwrap().remove("left");
        fs::write(data.path().join(NAME), text.to_string()).unwrap();
        let (history, trouble) = History::open(data.path());
        assert!(trouble.is_none(), "{trouble:?}");
        let known = history.recollect(&name("a"), &spec("s3cret")).unwrap();
        assert_eq!((known.epoch, &known.ran), (Epoch::FIRST, &None));
        assert_eq!(known.former[0].left, LeftBehind::Unsaid);
    }

    #[test]
    fn a_secret_is_not_written_and_another_one_makes_another_generation() {
        let data = written();
        let text = fs::read_to_string(data.path().join(NAME)).unwrap();
        assert!(!text.contains("s3cret"), "{text}");
        let (history, _) = History::open(data.path());
        let known = history.recollect(&name("a"), &spec("other")).unwrap();
        assert!(known.last.is_none() && known.former.is_empty() && known.bans.is_empty());
    }

    /// What is known of the one actor.
    fn known(history: &History) -> (usize, Vec<Ban>) {
        let known = history.recollect(&name("a"), &spec("s3cret")).expect("it is remembered");
        (known.former.len(), known.bans)
    }

    /// What the reader makes of bytes: the content, and whether all of them were used.
    fn content(bytes: &[u8]) -> Option<(String, bool)> {
        let (text, wholeness) = read(bytes).ok()?;
        let content = serde_json::to_string(&text).unwrap();
        Some((content, matches!(wholeness, Wholeness::Whole)))
    }

    /// The bytes of a real file, and their content.
    fn whole() -> (Vec<u8>, String) {
        let whole = fs::read(written().path().join(NAME)).unwrap();
        let (content, all) = content(&whole).unwrap();
        assert!(all);
        (whole, content)
    }

    #[test]
    fn whichever_bit_flips_no_ban_is_lost_and_it_is_seen() {
        let (mut bytes, all) = whole();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(content(&bytes), Some((all.clone(), false)), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn whichever_byte_becomes_whatever_no_ban_is_lost_and_it_is_seen() {
        let (mut bytes, all) = whole();
        for at in 0..bytes.len() {
            let was = bytes[at];
            for other in [0, b'\n', b'"', b'0', 0xff].into_iter().filter(|other| *other != was) {
                bytes[at] = other;
                assert_eq!(content(&bytes), Some((all.clone(), false)), "{other} at {at}");
            }
            bytes[at] = was;
        }
    }

    #[test]
    fn a_file_cut_short_is_read_while_one_copy_is_whole() {
        let (bytes, all) = whole();
        for length in 0..bytes.len() {
            let expected = (length >= bytes.len() / 2).then(|| (all.clone(), false));
            assert_eq!(content(&bytes[..length]), expected, "{length}");
        }
    }

    #[test]
    fn of_two_damaged_copies_no_byte_is_believed() {
        let (mut bytes, _) = whole();
        let half = bytes.len() / 2;
        for at in 0..half {
            for copy in [at, half + at] {
                bytes[copy] ^= 1;
            }
            assert_eq!(content(&bytes), None, "{at}");
            for copy in [at, half + at] {
                bytes[copy] ^= 1;
            }
        }
    }

    #[test]
    fn one_damaged_copy_is_told_and_two_are_put_aside_and_a_loss() {
        let data = written();
        let (mut bytes, _) = whole();
        let all = known(&History::open(data.path()).0);
        bytes[100] ^= 1;
        fs::write(data.path().join(NAME), &bytes).unwrap();
        let (history, trouble) = History::open(data.path());
        assert!(matches!(trouble, Some(HistoryError::Mended { .. })), "{trouble:?}");
        assert_eq!(known(&history).0, all.0);
        assert_eq!(history.past(), &Past::Known(BTreeSet::new()));
        let half = bytes.len() / 2;
        bytes[half + 100] ^= 1;
        fs::write(data.path().join(NAME), &bytes).unwrap();
        let (history, trouble) = History::open(data.path());
        assert!(matches!(trouble, Some(HistoryError::Damaged { .. })), "{trouble:?}");
        assert_eq!((history.actors().count(), history.past()), (0, &Past::Lost));
        assert!(data.path().join(ASIDE).exists() && !data.path().join(NAME).exists());
    }

    #[test]
    fn a_file_without_a_checksum_is_read_once_and_turned_over() {
        let data = written();
        let whole = fs::read(data.path().join(NAME)).unwrap();
        let all = known(&History::open(data.path()).0);
        let content: Value =
            serde_json::from_slice(unseal(&whole[..whole.len() / 2]).unwrap().content).unwrap();
        let mut bare = content.as_object().unwrap().clone();
        bare.insert("version".into(), 1.into());
        fs::write(data.path().join(NAME), serde_json::to_vec(&bare).unwrap()).unwrap();
        let (mut history, trouble) = History::open(data.path());
        assert!(trouble.is_none(), "{trouble:?}");
        assert_eq!(known(&history), all);
        let writing = history.next(&BTreeMap::new(), |_| true, &BTreeSet::new()).unwrap();
        writing.write().unwrap();
        assert_eq!(fs::read(data.path().join(NAME)).unwrap(), whole);
    }

    #[test]
    fn suspects_are_remembered() {
        let data = written();
        let (mut history, _) = History::open(data.path());
        let suspects = BTreeSet::from([digest(7)]);
        history.next(&BTreeMap::new(), |_| true, &suspects).unwrap().write().unwrap();
        assert_eq!(History::open(data.path()).0.past(), &Past::Known(suspects));
    }

    #[test]
    fn what_cannot_be_read_is_put_aside_and_not_written_over() {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join(NAME)).unwrap();
        let (_, trouble) = History::open(data.path());
        assert!(matches!(trouble, Some(HistoryError::Read { .. })), "{trouble:?}");
        assert!(data.path().join(ASIDE).is_dir() && !data.path().join(NAME).exists());
    }

    #[test]
    fn a_file_of_a_newer_version_is_put_aside_and_said() {
        let data = TempDir::new().unwrap();
        let mut newer = Vec::new();
        seal("reflowd generations 3", b"{}", &mut newer).unwrap();
        fs::write(data.path().join(NAME), newer.repeat(2)).unwrap();
        let (history, trouble) = History::open(data.path());
        assert!(matches!(trouble, Some(HistoryError::Other { .. })), "{trouble:?}");
        assert_eq!(history.past(), &Past::Lost);
        assert!(data.path().join(ASIDE).exists());
    }

    #[test]
    fn who_has_not_run_yet_is_remembered_as_long_as_it_is_asked_for() {
        let data = written();
        let (mut history, _) = History::open(data.path());
        let nobody = BTreeMap::new();
        let writing = history.next(&nobody, |_| true, &BTreeSet::new()).unwrap();
        assert!(writing.text.contains("\"a\""));
        assert!(
            !history.next(&nobody, |_| false, &BTreeSet::new()).unwrap().text.contains("\"a\"")
        );
    }
}
