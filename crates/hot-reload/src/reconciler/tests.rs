//! Passes over a folder, one by one, with nothing that makes them by itself.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use reflowd_loader::Limits;
use reflowd_runtime::{EpochState, Event, EventKind, Metadata, Ready, Settings};
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::*;
use crate::{ActorSpec, Checked, Draft, Found, GenerationKeys, ModuleFile, ModuleRef, View};

const QUIET: Duration = Duration::from_millis(10);

/// A flow of which each line is an actor and its module; without wires.
struct Lines {
    config: PathBuf,
}

impl Blueprint for Lines {
    fn files(&self, _texts: &Texts) -> ConfigFiles {
        ConfigFiles { configs: vec![self.config.clone()], includes: Vec::new() }
    }

    fn draft(&self, texts: &Texts) -> Result<Box<dyn Draft>, String> {
        let actors = texts[&self.config].lines().map(|line| {
            let (actor, module) = line.split_once(' ').ok_or("a line without a module")?;
            let (stem, pin) = (module.to_owned(), None);
            let spec = ActorSpec {
                module: if let Some((url, sha256)) = module.split_once(' ') {
                    ModuleRef::Url { url: url.parse().unwrap(), sha256: sha256.parse().unwrap() }
                } else if module.starts_with('/') {
                    ModuleRef::Path { path: module.into(), pin }
                } else {
                    ModuleRef::Stem { stem, pin }
                },
                keys: GenerationKeys::default(),
                settings: Settings::default(),
                version: None,
                was: None,
                origin: "flow:1".into(),
            };
            Ok((actor.parse().unwrap(), spec))
        });
        let actors = actors.collect::<Result<_, String>>()?;
        Ok(Box::new(LinesDraft(Flow { actors, ..Flow::default() })))
    }

    fn connector(&self, _: &ActorName, _: &str, _: &ActorSpec) -> Result<Ready, String> {
        Err("there are no connectors".into())
    }

    fn connector_metadata(&self, _: &str, _: Option<&GenerationKeys>) -> Option<Metadata> {
        None
    }
}

struct LinesDraft(Flow);

impl Draft for LinesDraft {
    fn flow(&self) -> &Flow {
        &self.0
    }

    fn check(&self, lookup: &dyn Fn(&ModuleRef) -> Found) -> Result<Checked, String> {
        let misfits = self.0.actors.iter().filter_map(|(actor, spec)| {
            let why = match lookup(&spec.module) {
                Found::Known(_) | Found::Awaited => return None,
                Found::Missing { .. } => format!("{} is missing", spec.module),
                Found::Broken { why } => why,
            };
            Some(Misfit { actors: [actor.clone()].into(), why })
        });
        Ok(Checked { warnings: None, misfits: misfits.collect() })
    }

    fn adopted(&self) {}
}

/// Nothing is written of states, and nothing is found.
struct NoStates;

impl StateFiles for NoStates {
    fn found(&self, _: &ActorName, _: Option<Epoch>) -> Option<EpochState> {
        None
    }

    fn begin(&self, _: &ActorName, _: &EpochState) -> std::io::Result<()> {
        Ok(())
    }

    fn settle(&self, _: &ActorName, _: Epoch) {}
}

struct Rig {
    root: TempDir,
    system: System,
    reconciler: Reconciler,
    reloader: Reloader,
}

/// What others can see, and what the reconciler will go by.
#[derive(Debug, PartialEq)]
struct Seen {
    view: Arc<View>,
    modules: Arc<Vec<ModuleFile>>,
    in_sync: bool,
    refusal_counts: BTreeMap<&'static str, u64>,
    bad_modules: BTreeMap<Digest, String>,
    config_problem: Option<String>,
    events: usize,
}

impl Rig {
    /// `relay.wasm` in the watched folder, and a flow.
    async fn begin(flow: &str) -> Self {
        let root = TempDir::new().unwrap();
        let modules = root.path().join("modules");
        fs::create_dir(&modules).unwrap();
        let config = root.path().join("flow");
        fs::write(&config, flow).unwrap();
        fs::write(modules.join("relay.wasm"), relay()).unwrap();
        let system = System::new(Handle::current());
        let (reconciler, reloader) = Reconciler::new(Parts {
            system: system.clone(),
            loader: Loader::new(Limits::default()),
            blueprint: Arc::new(Lines { config }),
            kept: Kept::open(&root.path().join("data"), 1 << 30).unwrap(),
            history: History::open(&root.path().join("data")).0,
            generations: 10,
            modules,
            autostart: None,
            scan: ScanOptions { quiet: QUIET, ..ScanOptions::default() },
            pace: Pace { quiet: QUIET, rescan: Duration::from_secs(3600) },
            eyes: Eyes::Blind,
            drain: Duration::from_secs(1),
            states: Arc::new(NoStates),
            former_states: FormerStates::open(&root.path().join("data")).unwrap(),
        });
        let mut rig = Self { root, system, reconciler, reloader };
        let report = rig.reconciler.begin(Duration::from_secs(60)).await;
        assert!(report.is_clean(), "{report:?}");
        rig
    }

    /// Writes a file, other bytes in each call, and renames it into place.
    fn put(&self, file: &str, bytes: &[u8]) {
        let temporary = self.root.path().join("being-written");
        fs::write(&temporary, bytes).unwrap();
        fs::rename(temporary, self.root.path().join(file)).unwrap();
    }

    async fn pass(&mut self, options: ReloadOptions) -> Report {
        self.reconciler.settled_pass(options, Depth::Everything).await
    }

    /// How many events of that name there are.
    fn told(&self, name: &str) -> usize {
        self.system.events().since(0).0.iter().filter(|e| e.kind.name() == name).count()
    }

    fn seen(&self) -> Seen {
        Seen {
            view: self.reloader.view(),
            modules: self.reloader.modules(),
            in_sync: self.reloader.in_sync(),
            refusal_counts: self.reloader.refusal_counts(),
            bad_modules: self.reconciler.memory.bad_modules.all_standing(Instant::now()),
            config_problem: self.reconciler.config_problem().map(str::to_owned),
            events: self.system.events().since(0).0.iter().filter(of_passes).count(),
        }
    }
}

/// Whether a pass has said it, and not an actor on its way out.
fn of_passes(event: &&Event) -> bool {
    !matches!(event.kind, EventKind::Draining { .. } | EventKind::Stopped { .. })
}

fn relay() -> Vec<u8> {
    let guests = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/guests");
    fs::read(Path::new(guests).join("relay.wasm")).unwrap()
}

const NOW: ReloadOptions =
    ReloadOptions { dry_run: false, force: false, allow_removal: false, timeout: None };
const DRY: ReloadOptions = ReloadOptions { dry_run: true, ..NOW };

#[tokio::test]
async fn a_dry_run_says_what_a_pass_would_do_and_leaves_no_trace() {
    let mut rig = Rig::begin("a relay\n").await;
    let broken: &[u8] = b"this is no module";
    for (what, file, bytes) in [
        ("another actor", "flow", b"a relay\nb relay\n".as_slice()),
        ("an actor less", "flow", b"a relay\n"),
        ("a configuration that makes no sense", "flow", b"a\n"),
        ("a configuration that lacks a module", "flow", b"a relay\nc nothing\n"),
        ("a configuration that is right again", "flow", b"a relay\nd relay\n"),
        ("a configuration that was emptied", "flow", b""),
        ("a configuration that is not empty any more", "flow", b"a relay\ne relay\n"),
        ("a broken module", "modules/relay.wasm", broken),
    ] {
        rig.put(file, bytes);
        let before = rig.seen();
        let dry = rig.pass(DRY).await;
        assert_eq!(rig.seen(), before, "{what}");
        let wet = rig.pass(NOW).await;
        assert_eq!(dry, wet, "{what}");
        assert!(!wet.is_empty(), "{what}");
        assert!(rig.seen().events > before.events, "{what}");
    }

    // What is known of the module stays known, whatever is tried.
    let before = rig.seen();
    assert_eq!((before.bad_modules.len(), before.refusal_counts.values().sum::<u64>()), (1, 1));
    let report = rig.pass(ReloadOptions { force: true, ..DRY }).await;
    assert!(!report.refused.is_empty(), "{report:?}");
    assert_eq!(rig.seen(), before);
    rig.system.kill().await;
}

#[tokio::test]
async fn a_configuration_that_is_refused_takes_no_path_out_of_sight() {
    let mut rig = Rig::begin("a relay\n").await;
    rig.put("one.wasm", &relay());
    let one = rig.root.path().join("one.wasm");
    rig.put("flow", format!("a {}\n", one.display()).as_bytes());
    let report = rig.pass(NOW).await;
    assert!(report.is_clean() && !report.changed.is_empty(), "{report:?}");
    rig.put("flow", b"a /nowhere/two.wasm\n");
    let report = rig.pass(NOW).await;
    assert!(!report.is_clean(), "{report:?}");
    let view = rig.reloader.view();
    assert!(view["a"].wanted.is_some(), "{view:?}");
    rig.system.kill().await;
}

#[tokio::test]
async fn a_dry_run_asks_no_server() {
    let mut rig = Rig::begin("a relay\n").await;
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let (address, digest) = (server.local_addr().unwrap(), Digest::new([7; 32]));
    rig.put("flow", format!("a relay\nb http://{address}/b.wasm {digest}\n").as_bytes());
    let report = rig.pass(DRY).await;
    assert!(report.is_clean(), "{report:?}");
    assert!(report.warnings.iter().any(|w| w.contains("still to come")), "{report:?}");
    assert!(rig.reconciler.downloads.soon(Instant::now()).is_none(), "nothing is under way");
    assert!(server.accept().is_err(), "nobody has connected");

    // A pass asks, and does not wait for what a silent server will say.
    rig.reconciler.pass(NOW, Depth::Everything).await;
    assert!(rig.reconciler.downloads.soon(Instant::now()).is_some());
    rig.put("flow", b"a relay\n");
    rig.pass(NOW).await;
    assert!(rig.reconciler.downloads.soon(Instant::now()).is_none(), "nobody wants it any more");
    rig.system.kill().await;
}

#[tokio::test]
async fn a_configuration_that_cannot_be_read_is_a_refusal_and_told_as_it_begins_and_ends() {
    let mut rig = Rig::begin("a relay\n").await;
    let flow = rig.root.path().join("flow");
    let large = vec![b'#'; (4 << 20) + 1];
    type Spoil<'a> = (&'a str, &'a dyn Fn(&Rig));
    let ways: [Spoil<'_>; 5] = [
        ("the configuration file is not there", &|_| fs::remove_file(&flow).unwrap()),
        ("this is a folder", &|_| {
            fs::remove_file(&flow).unwrap();
            fs::create_dir(&flow).unwrap();
        }),
        ("and 4194304 are allowed", &|rig| rig.put("flow", &large)),
        ("not UTF-8", &|rig| rig.put("flow", b"a relay\n\xff")),
        ("anybody may write", &|_| {
            fs::set_permissions(&flow, fs::Permissions::from_mode(0o666)).unwrap();
        }),
    ];
    for (n, (why, spoil)) in ways.into_iter().enumerate() {
        spoil(&rig);
        for _ in 0..2 {
            let report = rig.pass(NOW).await;
            assert_eq!(report.refused.len(), 1, "{why}: {report:?}");
            assert_eq!(report.refused[0].what, "configuration");
            assert!(report.refused[0].why.contains(why), "{report:?}");
            assert!(report.warnings.is_empty() && report.removed.is_empty(), "{report:?}");
            assert!(!rig.reloader.in_sync() && !rig.reloader.config_in_force(), "{why}");
            assert_eq!(rig.told("config-unknown"), n + 1, "{why}: once, as it begins");
            assert_eq!(rig.told("config-known"), n, "{why}: not before it is over");
            assert!(rig.system.actor("a").is_some());
        }
        if flow.is_dir() {
            fs::remove_dir(&flow).unwrap();
        }
        rig.put("flow", b"a relay\n");
        let report = rig.pass(NOW).await;
        assert!(report.is_clean(), "{why}: {report:?}");
        assert!(rig.reloader.in_sync() && rig.reloader.config_in_force(), "{why}");
        assert_eq!((rig.told("config-unknown"), rig.told("config-known")), (n + 1, n + 1));
    }
    rig.system.kill().await;
}

#[tokio::test]
async fn a_reload_right_after_a_module_was_removed_says_that_it_is_gone() {
    let mut rig = Rig::begin("a relay\n").await;
    fs::remove_file(rig.root.path().join("modules/relay.wasm")).unwrap();
    for _ in 0..2 {
        let report = rig.pass(NOW).await;
        assert_eq!(report.refused.len(), 1, "{report:?}");
        assert_eq!(report.refused[0].what, "a");
        let why = "there is no file of its module; it goes on with the module that is kept";
        assert_eq!(report.refused[0].why, why);
        assert_eq!(rig.told("file-gone"), 1);
        assert!(rig.reloader.view()["a"].file_gone && !rig.reloader.in_sync());
    }
    rig.put("modules/relay.wasm", &relay());
    assert!(rig.pass(NOW).await.is_clean());
    rig.system.kill().await;
}

#[tokio::test]
async fn a_configuration_that_is_refused_or_held_is_not_in_force() {
    let mut rig = Rig::begin("a relay\n").await;
    assert!(rig.reloader.config_in_force());
    for (text, in_force) in [("a\n", false), ("a relay\nb relay\n", true), ("", false)] {
        rig.put("flow", text.as_bytes());
        rig.pass(NOW).await;
        assert_eq!(rig.reloader.config_in_force(), in_force, "{text}");
    }
    rig.system.kill().await;
}
