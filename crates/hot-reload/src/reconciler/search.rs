//! Random histories of files, edits, kills and looks, for a removal that nobody is told of.
//!
//! An operator has seen it once: the module of a configured actor was gone from disk, `reload`
//! found nothing, no event said so, and `ps` said `differs`. Here the pure parts of a pass
//! (when a file is gone, the plan, what is said and what is said again, the view) go through
//! histories as they do in a daemon, over a disk that is a map and a clock that is a number.
//!
//! `REFLOWD_CASES=1000000` runs more histories, `REFLOWD_SEED` begins at another one.

use std::{
    collections::hash_map::RandomState,
    ffi::OsString,
    hash::{BuildHasher, Hasher},
};

use reflowd_runtime::{EventKind, Generation, Settings};
use tokio::runtime::Builder;

use super::*;
use crate::{Absence, ActorSpec, GRACE, GenerationKeys, Missing, ModuleRef};

/// Histories of one run.
const CASES: u64 = 20_000;

/// Steps of one history.
const STEPS: usize = 40;

/// Modules from this number on are refused for what they are.
const BAD: u8 = 200;

const ACTORS: [&str; 3] = ["a", "b", "c"];
const STEMS: [&str; 3] = ["m", "n", "o"];

/// Numbers that are the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap()]
    }
}

fn digest(number: u8) -> Digest {
    Digest::new([number; 32])
}

fn spec(stem: &str) -> ActorSpec {
    ActorSpec {
        module: ModuleRef::Stem { stem: stem.into(), pin: None },
        keys: GenerationKeys::default(),
        settings: Settings::default(),
        version: None,
        was: None,
        origin: "flow:1".into(),
    }
}

/// A disk, and a daemon that looks at it.
struct World {
    system: System,
    now: Instant,
    /// Modules by stem.
    files: BTreeMap<String, u8>,
    /// The actors that the configuration on disk asks for; nothing, where it is refused.
    config: Option<Flow>,
    folder: PathBuf,
    daemon: Daemon,
    /// What the data folder has of each actor.
    kept: BTreeMap<ActorName, RunningActor>,
}

/// What is gone with the process.
#[derive(Default)]
struct Daemon {
    seen: BTreeSet<String>,
    absence: Absence<String>,
    flow: Flow,
    configured: bool,
    running: Running,
    recollected: BTreeMap<ActorName, RunningActor>,
    retired: Retired,
    said: BTreeSet<String>,
    bans: Bans,
    /// By stem, the number of the last event when a pass last found its file. A dry run is
    /// none: what comes and goes between two passes was not there for anybody.
    present: BTreeMap<String, u64>,
}

impl World {
    fn new(system: System) -> Self {
        let mut world = Self {
            system,
            now: Instant::now(),
            files: BTreeMap::new(),
            config: Some(Flow::default()),
            folder: "/modules".into(),
            daemon: Daemon::default(),
            kept: BTreeMap::new(),
        };
        world.files.insert("m".into(), 1);
        world.config.as_mut().unwrap().actors.insert("a".parse().unwrap(), spec("m"));
        world
    }

    fn events(&self) -> u64 {
        self.system.events().since(0).0.last().map_or(0, |event| event.number)
    }

    /// What a look says, as `Scanner` makes it.
    fn look(&mut self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let daemon = &mut self.daemon;
        for stem in STEMS {
            let sight = match self.files.get(stem) {
                Some(number) => {
                    daemon.absence.forget(stem);
                    daemon.seen.insert(stem.into());
                    Sight::Present(digest(*number))
                }
                None if daemon.seen.contains(stem) => {
                    match daemon.absence.miss(stem.into(), self.now) {
                        Missing::Until(at) => {
                            snapshot.again = Some(at);
                            Sight::Missing
                        }
                        Missing::Gone => {
                            daemon.absence.forget(stem);
                            daemon.seen.remove(stem);
                            Sight::Gone
                        }
                    }
                }
                None => continue,
            };
            snapshot.modules.insert(OsString::from(format!("{stem}.wasm")), sight);
        }
        snapshot
    }

    /// One pass, as `Reconciler::pass` makes it. Also says when another is worth it: also
    /// where an actor has started as it ran in another process.
    fn pass(&mut self, dry_run: bool) -> (Report, Option<Instant>) {
        let snapshot = self.look();
        if !dry_run {
            let last = self.events();
            let present = self.files.keys().map(|stem| (stem.clone(), last));
            self.daemon.present.extend(present);
        }
        let system = self.system.clone();
        let said = mem::take(&mut self.daemon.said);
        let before = said.clone();
        let mut telling = Telling::new(system, said, dry_run);
        let former_flow = self.daemon.flow.clone();
        match &self.config {
            None => telling.config_refused("it makes no sense".into()),
            Some(flow) => {
                if !self.daemon.configured {
                    self.daemon.recollected = self.kept.clone();
                }
                self.daemon.flow = flow.clone();
                if !dry_run {
                    self.daemon.configured = true;
                    self.daemon.retired.note(flow, &self.folder);
                }
            }
        }
        let waiting = self.daemon.recollected.len();
        if self.daemon.configured {
            self.follow(&snapshot, dry_run, &mut telling);
        }
        let again = self.daemon.recollected.len() < waiting;
        let away = |spec: &ActorSpec| matches!(snapshot.module(&spec.module), Sight::Missing);
        let asked = self.daemon.flow.actors.values();
        let runs = self.daemon.running.actors.values().map(|actor| &actor.spec);
        let is_away = asked.chain(runs).any(away);
        let (report, said) = telling.end();
        if dry_run {
            self.daemon.said = before;
            self.daemon.flow = former_flow;
        } else {
            self.daemon.said = said;
            self.kept = self.daemon.running.actors.clone();
            self.kept.retain(|_, actor| !actor.draining);
        }
        let later = snapshot.again.filter(|_| is_away);
        (report, if again { Some(self.now) } else { later })
    }

    fn follow(&mut self, snapshot: &Snapshot, dry_run: bool, telling: &mut Telling) {
        let refused = (BAD..=u8::MAX).map(|bad| (digest(bad), "bad".into())).collect();
        let daemon = &mut self.daemon;
        // Whoever drains has nothing left to do here.
        daemon.running.actors.retain(|_, actor| !actor.draining);
        let wanted = Wanted {
            flow: &daemon.flow,
            snapshot,
            folder: &self.folder,
            autostart: None,
            retired: &daemon.retired,
            refused: &refused,
            loading: &BTreeSet::new(),
            bans: &daemon.bans,
            recollected: &daemon.recollected,
            removals: Removals::Allowed,
        };
        let plan = plan(wanted, &daemon.running);
        for note in &plan.notes {
            telling.note(note, &daemon.running);
        }
        for (actor, doubt) in plan.blocked.iter().flat_map(|blocked| &blocked.because) {
            telling.blocked(actor, doubt, doubt.to_string());
        }
        for change in plan.changes {
            telling.change(&change);
            if dry_run {
                continue;
            }
            let number = |actor: &ActorName| {
                let before = daemon.running.actors.get(actor).map(|actor| actor.generation);
                before.map_or(Generation::FIRST, Generation::next)
            };
            let starts = change.start.iter().map(|start| &start.actor);
            let swaps = change.swap.iter().map(|swap| &swap.actor);
            let generations =
                starts.chain(swaps).map(|actor| (actor.clone(), number(actor))).collect();
            daemon.running.take(&change, &generations);
            change.start.iter().for_each(|start| _ = daemon.recollected.remove(&start.actor));
        }
        telling.changed();
    }

    /// Passes until nothing is only away for a moment, as an explicit reload does.
    fn reload(&mut self) -> Report {
        loop {
            let (report, again) = self.pass(false);
            match again {
                Some(at) => self.now = at.max(self.now),
                None => return report,
            }
        }
    }

    fn step(&mut self, dice: &mut Dice) -> String {
        let millis = |n: u64| Duration::from_millis(n);
        match dice.roll(14) {
            0 | 1 => {
                let (stem, number) = (dice.pick(&STEMS), u8::try_from(dice.roll(3)).unwrap() + 1);
                self.files.insert(stem.into(), number);
                format!("put {stem} {number}")
            }
            2 => {
                let stem = dice.pick(&STEMS);
                self.files.insert(stem.into(), BAD);
                format!("junk {stem}")
            }
            3..=5 => {
                let stem = dice.pick(&STEMS);
                self.files.remove(stem);
                format!("remove {stem}")
            }
            6 => {
                let (actor, stem) = (dice.pick(&ACTORS), dice.pick(&STEMS));
                let mut flow = self.config.take().unwrap_or_else(|| self.daemon.flow.clone());
                flow.actors.insert(actor.parse().unwrap(), spec(stem));
                self.config = Some(flow);
                format!("configure {actor} {stem}")
            }
            7 => {
                let actor = dice.pick(&ACTORS);
                let mut flow = self.config.take().unwrap_or_else(|| self.daemon.flow.clone());
                flow.actors.remove(actor);
                self.config = Some(flow);
                format!("take out {actor}")
            }
            8 if self.daemon.configured => {
                self.config = None;
                "an edit that makes no sense".into()
            }
            8 | 9 => {
                self.pass(true);
                "dry run".into()
            }
            10 => {
                if self.config.is_none() {
                    // A daemon does not start on it.
                    self.config = Some(self.daemon.flow.clone());
                }
                self.daemon = Daemon::default();
                // As `Reconciler::begin` does.
                (0..3).for_each(|_| _ = self.pass(false));
                "kill and start".into()
            }
            11 => {
                let wait = dice.roll(3000);
                self.now += millis(wait);
                format!("wait {wait}")
            }
            12 => {
                self.reload();
                "reload".into()
            }
            _ => {
                self.pass(false);
                "look".into()
            }
        }
    }

    /// What an operator finds who now looks after it.
    fn check(&mut self) -> Result<(), String> {
        let report = self.reload();
        let (events, _) = self.system.events().since(0);
        let snapshot = self.look();
        let (none, no_bad) = (BTreeMap::new(), BadModules::default());
        let stand = Stand {
            flow: &self.daemon.flow,
            running: &self.daemon.running,
            snapshot: &snapshot,
            bad_modules: &no_bad,
            bans: &self.daemon.bans,
            held: &none,
            rolling_out: BTreeMap::new(),
            folder: &self.folder,
            now: self.now,
        };
        let view = stand.actors();
        for (name, actor) in &self.daemon.running.actors {
            let Some(asked) = self.daemon.flow.actors.get(name) else { continue };
            let ModuleRef::Stem { stem, .. } = &asked.module else { unreachable!() };
            // One that goes on as it is for another reason is told for that.
            if self.files.contains_key(stem) || asked.module != actor.spec.module {
                continue;
            }
            if !view[name].file_gone {
                return Err(format!("{name}: ps says `differs`"));
            }
            if report.is_clean() {
                return Err(format!("{name}: reload finds nothing: {report:?}"));
            }
            let since = self.daemon.present.get(stem).copied().unwrap_or(0);
            let told = |event: &reflowd_runtime::Event| {
                event.number > since
                    && matches!(&event.kind, EventKind::FileGone { actors, .. } if actors.contains(name))
            };
            if !events.iter().any(told) {
                return Err(format!("{name}: its removal is no event"));
            }
        }
        Ok(())
    }
}

/// Plays the history of a seed.
fn history(system: &System, seed: u64) -> Result<(), String> {
    let mut dice = Dice(seed);
    let mut world = World::new(system.clone());
    world.pass(false);
    let mut steps = Vec::new();
    for _ in 0..STEPS {
        steps.push(world.step(&mut dice));
    }
    world.now += GRACE;
    world.check().map_err(|why| format!("{why}\nREFLOWD_SEED={seed} REFLOWD_CASES=1: {steps:#?}"))
}

#[test]
fn no_removal_of_a_module_in_use_goes_by_untold() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = given("REFLOWD_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let cases = given("REFLOWD_CASES").unwrap_or(CASES);
    println!("REFLOWD_SEED={first}");
    let runtime = Builder::new_current_thread().build().unwrap();
    for seed in (0..cases).map(|case| first.wrapping_add(case)) {
        // The events of a history are its own.
        let system = System::new(runtime.handle().clone());
        if let Err(why) = history(&system, seed) {
            panic!("{why}");
        }
    }
    println!("{cases} histories");
}
