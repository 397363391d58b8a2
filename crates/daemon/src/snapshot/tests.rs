//! Snapshots of a real system, in real files.

use std::time::Duration;

use futures_util::future::BoxFuture;
use reflowd_runtime::{
    ActorLog, Change, Context, Digest, Effects, Engine, InstantiateError, Message, Metadata, Port,
    PortRef, Program, Ready, Settings, Start, Turn, Type,
};
use tempfile::TempDir;

use super::*;

/// An actor whose state is the last message's data.
struct Keeper(Metadata);

impl Keeper {
    fn new() -> Self {
        let name = "in".parse().unwrap();
        let port =
            Port { name, description: String::new(), port_type: Type::Object, required: false };
        Self(Metadata {
            component: "keeper".into(),
            description: String::new(),
            inports: vec![port],
            outports: Vec::new(),
            config_schema: None,
            version: None,
        })
    }
}

impl Program for Keeper {
    fn digest(&self) -> Digest {
        Digest::new([1; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.0
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        Box::pin(async { Ok(Box::new(KeeperEngine) as Box<dyn Engine>) })
    }
}

struct KeeperEngine;

impl Engine for KeeperEngine {
    fn turn(self: Box<Self>, context: Context, _: Instant) -> BoxFuture<'static, Turn> {
        let state = State::new(context.payload[0].1.data().clone()).unwrap();
        let effects = Effects { state: Some(state), ..Effects::default() };
        Box::pin(async { Ok((self as Box<dyn Engine>, effects)) })
    }
}

struct Rig {
    system: System,
    snapshots: Snapshots,
    folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let system = System::new(tokio::runtime::Handle::current());
        let snapshots = Snapshots::open(folder.path(), Arc::clone(system.events()));
        Self { system, snapshots, folder }
    }

    async fn start(&self, name: &str, persistence: Persistence, state: Option<State>) {
        self.start_as(name, persistence, state, None).await;
    }

    async fn start_as(
        &self,
        name: &str,
        persistence: Persistence,
        state: Option<State>,
        was: Option<&str>,
    ) {
        let name: ActorName = name.parse().unwrap();
        let program = Arc::new(Keeper::new());
        let engine = program.instantiate().await.unwrap();
        let log = ActorLog::new(name.clone(), 1);
        let settings = Settings { state: persistence, ..Settings::default() };
        let module = "keeper".into();
        let ready = Ready::Engine { program, engine, version: None, log, module };
        let was = was.map(|was| was.parse().unwrap());
        let start = Start { name, ready, settings, state: state.map(EpochState::from), was };
        self.system.apply(Change { start: vec![start], ..Change::default() }).await;
    }

    /// Gives an actor a state by way of a turn.
    async fn set(&self, actor: &str, state: &'static str) {
        let to: PortRef = format!("{actor}.in").parse().unwrap();
        let message = Message::new(Type::Object, state).unwrap();
        self.system.send(&to, message, None).unwrap();
        let soon = Instant::now() + Duration::from_secs(60);
        assert_eq!(self.system.drained(soon).await, 0);
    }

    fn round(&self) -> (usize, usize) {
        let round = self.snapshots.write_changed(&self.system);
        (round.written, round.failed)
    }

    fn file(&self, actor: &str) -> PathBuf {
        self.folder.path().join(format!("{actor}.json"))
    }

    /// What another daemon on the same folder would start the actor with.
    fn reloaded(&self, actor: &str) -> Option<String> {
        let another = Snapshots::open(self.folder.path(), Arc::clone(self.system.events()));
        let state = another.load(&actor.parse().unwrap(), None);
        state.map(|found| String::from_utf8(found.state.text().to_vec()).unwrap())
    }
}

#[tokio::test]
async fn a_state_is_written_when_it_has_changed() {
    let rig = Rig::new();
    rig.start("a", Persistence::Snapshot, None).await;
    assert_eq!(rig.round(), (0, 0));
    assert!(!rig.file("a").exists());
    rig.set("a", r#"{"n": 1}"#).await;
    assert_eq!(rig.round(), (1, 0));
    assert_eq!(rig.round(), (0, 0));
    rig.set("a", "{}").await;
    assert_eq!(rig.round(), (1, 0));
    rig.set("a", r#"{"n":2}"#).await;
    assert_eq!(rig.round(), (1, 0));
    assert_eq!(rig.reloaded("a").as_deref(), Some(r#"{"n":2}"#));
}

#[tokio::test]
async fn each_epoch_has_a_file_of_its_own_until_it_is_settled_which_counts() {
    let rig = Rig::new();
    let a: ActorName = "a".parse().unwrap();
    rig.start("a", Persistence::Snapshot, None).await;
    rig.set("a", r#"{"n":1}"#).await;
    assert_eq!(rig.round(), (1, 0));
    let next = EpochState::found(State::new(r#"{"m":1}"#).unwrap(), Epoch::numbered(12));
    rig.snapshots.begin(&a, &next).unwrap();
    // Until then the actor goes on in the epoch that it is in.
    rig.set("a", r#"{"n":2}"#).await;
    assert_eq!(rig.round(), (1, 0));
    let again = Snapshots::open(rig.folder.path(), Arc::clone(rig.system.events()));
    let found = |epoch| again.load(&a, epoch).unwrap();
    assert_eq!(found(Some(Epoch::FIRST)).state.text(), r#"{"n":2}"#);
    assert_eq!(found(Some(Epoch::numbered(12))), next);
    assert_eq!(found(None), next);
    assert_eq!(again.load(&a, Some(Epoch::numbered(2))), None);
    again.settle(&a, Epoch::FIRST);
    assert_eq!(found(None).epoch, Epoch::FIRST);
    assert!(!rig.folder.path().join("a@12.json").exists());
}

#[tokio::test]
async fn what_a_removed_actor_has_left_is_written_too() {
    let rig = Rig::new();
    rig.start("a", Persistence::Snapshot, None).await;
    rig.start("b", Persistence::Memory, None).await;
    rig.set("a", r#"{"n":1}"#).await;
    rig.set("b", r#"{"n":1}"#).await;
    let stop = ["a", "b"].map(|name| name.parse().unwrap()).to_vec();
    let drain = Duration::from_secs(60);
    rig.system.apply(Change { stop, drain, ..Change::default() }).await;
    while !rig.system.actors().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.round(), (1, 0));
    assert_eq!(rig.round(), (0, 0));
    assert_eq!(rig.reloaded("a").as_deref(), Some(r#"{"n":1}"#));
    assert!(!rig.file("b").exists());
}

#[tokio::test]
async fn a_state_that_an_heir_has_is_under_one_name() {
    let rig = Rig::new();
    rig.start("a", Persistence::Snapshot, None).await;
    rig.set("a", r#"{"n":1}"#).await;
    assert_eq!(rig.round(), (1, 0));
    rig.start_as("b", Persistence::Snapshot, None, Some("a")).await;
    assert_eq!(rig.round(), (1, 0));
    assert_eq!(rig.reloaded("b").as_deref(), Some(r#"{"n":1}"#));
    assert!(!rig.file("a").exists());
    // Another of the old name has a file of its own.
    rig.start("a", Persistence::Snapshot, None).await;
    rig.set("a", r#"{"n":2}"#).await;
    assert_eq!(rig.round(), (1, 0));
    assert_eq!(rig.reloaded("a").as_deref(), Some(r#"{"n":2}"#));
}

#[tokio::test]
async fn a_state_without_a_checksum_is_read_once_and_written_anew() {
    // The second is one that is not taken any more, and is kept.
    for old in [r#"{"n":1}"#, r#"{"n":1e400}"#] {
        let rig = Rig::new();
        fs::write(rig.file("a"), old).unwrap();
        let state = rig.snapshots.load(&"a".parse().unwrap(), None).unwrap();
        rig.start("a", Persistence::Snapshot, Some(state.state)).await;
        assert_eq!(rig.round(), (1, 0));
        assert_eq!(rig.round(), (0, 0));
        let written = fs::read(rig.file("a")).unwrap();
        assert_eq!(unseal(&written).unwrap().content, old.as_bytes());
        assert_eq!(rig.reloaded("a").as_deref(), Some(old));
    }
}

#[tokio::test]
async fn no_bit_of_a_state_flips_unseen() {
    let rig = Rig::new();
    rig.start("a", Persistence::Snapshot, None).await;
    rig.set("a", r#"{"n":1}"#).await;
    assert_eq!(rig.round(), (1, 0));
    let whole = fs::read(rig.file("a")).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(rig.file("a"), &damaged).unwrap();
        let (_, mut events) = rig.system.events().since(0);
        assert_eq!(rig.reloaded("a"), None, "bit {bit}");
        assert_eq!(events.try_recv().unwrap().kind.name(), "data-damaged", "bit {bit}");
    }
}

#[tokio::test]
async fn a_state_that_was_read_is_not_written_again() {
    let rig = Rig::new();
    let mut sealed = Vec::new();
    seal(TITLE, br#"{"n":1}"#, &mut sealed).unwrap();
    fs::write(rig.file("a"), sealed).unwrap();
    let state = rig.snapshots.load(&"a".parse().unwrap(), None).unwrap();
    rig.start("a", Persistence::Snapshot, Some(state.state)).await;
    assert_eq!(rig.system.actor("a").unwrap().state().text(), r#"{"n":1}"#);
    assert_eq!(rig.round(), (0, 0));
}

#[tokio::test]
async fn a_state_that_is_to_stay_in_memory_is_not_written() {
    let rig = Rig::new();
    rig.start("a", Persistence::Memory, None).await;
    rig.set("a", r#"{"n":1}"#).await;
    assert_eq!(rig.round(), (0, 0));
    assert_eq!(rig.reloaded("a"), None);
}

#[tokio::test]
async fn a_damaged_state_is_moved_aside() {
    let rig = Rig::new();
    for damaged in ["", "[1]", r#"{"n":"#, "\u{fffd}"] {
        fs::write(rig.file("a"), damaged).unwrap();
        assert_eq!(rig.reloaded("a"), None, "{damaged:?}");
        assert!(!rig.file("a").exists());
        let aside = fs::read_to_string(rig.folder.path().join("a.damaged")).unwrap();
        assert_eq!(aside, damaged);
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_tried_again() {
    let rig = Rig::new();
    rig.start("a", Persistence::Snapshot, None).await;
    rig.set("a", r#"{"n":1}"#).await;
    // A folder where the file should be stops every user, root included.
    fs::create_dir(rig.file("a")).unwrap();
    let told = || {
        let (events, _) = rig.system.events().since(0);
        let of_states = events.iter().map(|event| event.kind.name());
        of_states.filter(|name| name.starts_with("state-")).collect::<Vec<_>>()
    };
    assert_eq!(rig.round(), (0, 1));
    assert_eq!(rig.round(), (0, 1));
    assert_eq!(told(), ["state-not-written"]);
    fs::remove_dir(rig.file("a")).unwrap();
    assert_eq!(rig.round(), (1, 0));
    assert_eq!(told(), ["state-not-written", "state-written"]);
}

#[tokio::test]
async fn the_state_of_an_actor_that_is_gone_is_kept_for_a_week_in_which_daemons_run() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let rig = Rig::new();
    let names = ["live", "gone", "back"];
    names.iter().for_each(|name| fs::write(rig.file(name), "{}").unwrap());
    let here = || names.map(|name| rig.file(name).exists());
    let live = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    let began = Instant::now();
    let daemon = || Snapshots::open(rig.folder.path(), Arc::clone(rig.system.events()));
    let sweep = |daemon: &Snapshots, days, names: &[&str]| {
        daemon.sweep(&mut daemon.past.lock(), &live(names), began + DAY * days);
    };
    let first = daemon();
    sweep(&first, 0, &["live"]);
    sweep(&first, 6, &["live"]);
    // What was in between is not known.
    let second = daemon();
    sweep(&second, 60, &["live"]);
    assert_eq!(here(), [true, true, true]);
    sweep(&second, 60, &["live", "back"]);
    sweep(&second, 61, &["live"]);
    assert_eq!(here(), [true, false, true], "six days and one");
    sweep(&second, 67, &["live"]);
    assert_eq!(here(), [true, false, true], "it was here in between");
    // The live one has just left.
    sweep(&second, 68, &[]);
    assert_eq!(here(), [true, false, false]);
    sweep(&second, 75, &[]);
    assert_eq!(here(), [false, false, false]);
}

#[tokio::test]
async fn no_state_is_removed_on_the_word_of_a_clock_that_may_be_wrong() {
    let rig = Rig::new();
    rig.start("a", Persistence::Snapshot, None).await;
    rig.set("a", r#"{"n":1}"#).await;
    assert_eq!(rig.round(), (1, 0));
    let stop = vec!["a".parse().unwrap()];
    rig.system.apply(Change { stop, drain: Duration::ZERO, ..Change::default() }).await;
    while !rig.system.actors().is_empty() {
        tokio::task::yield_now().await;
    }
    // To a machine whose clock has jumped, the file is years old.
    let file = File::options().write(true).open(rig.file("a")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let another = Snapshots::open(rig.folder.path(), Arc::clone(rig.system.events()));
    another.write_changed(&System::new(tokio::runtime::Handle::current()));
    assert_eq!(rig.reloaded("a").as_deref(), Some(r#"{"n":1}"#));
}

#[tokio::test]
async fn a_state_whose_actor_comes_back_for_a_moment_is_kept_for_another_week() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let rig = Rig::new();
    fs::write(rig.file("a"), "{}").unwrap();
    let (began, nobody) = (Instant::now(), BTreeSet::new());
    let sweep = |days| {
        rig.snapshots.sweep(&mut rig.snapshots.past.lock(), &nobody, began + DAY * days);
    };
    assert_eq!(rig.round(), (0, 0));
    sweep(6);
    rig.start("a", Persistence::Snapshot, None).await;
    // There is no sweep within the hour, and the next round knows it all the same.
    assert_eq!(rig.round(), (0, 0));
    sweep(12);
    sweep(18);
    assert!(rig.file("a").exists());
    sweep(19);
    assert!(!rig.file("a").exists());
}

#[tokio::test]
async fn a_note_of_absences_that_is_damaged_removes_nothing() {
    let rig = Rig::new();
    fs::write(rig.file("a"), "{}").unwrap();
    fs::write(rig.folder.path().join("absences"), r#"{"a.json":99999999}"#).unwrap();
    let daemon = Snapshots::open(rig.folder.path(), Arc::clone(rig.system.events()));
    daemon.sweep(&mut daemon.past.lock(), &BTreeSet::new(), Instant::now());
    assert!(rig.file("a").exists());
}

#[tokio::test]
async fn rounds_are_done_until_the_stop() {
    let rig = Rig::new();
    rig.start("a", Persistence::Snapshot, None).await;
    rig.set("a", r#"{"n":1}"#).await;
    let stop = CancellationToken::new();
    let keep = Arc::new(rig.snapshots).keep(rig.system.clone(), stop.clone());
    let file = rig.folder.path().join("a.json");
    let seen = async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    time::timeout(Duration::from_secs(60), async { tokio::join!(keep, seen) }).await.unwrap();
}
