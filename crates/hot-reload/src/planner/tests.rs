//! Plans, each from a few lines of disk and of what runs.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use reflowd_runtime::{Generation, Settings};

use super::*;
use crate::{Bans, Flow, GenerationKeys, Retired, Snapshot, Template, Trouble};

const FOLDER: &str = "/modules";

/// Disk and what runs, told in few words.
struct Rig {
    flow: Flow,
    snapshot: Snapshot,
    template: Option<Template>,
    retired: Retired,
    refused: BTreeMap<Digest, String>,
    bans: Bans,
    recollected: BTreeMap<ActorName, RunningActor>,
    removals: Removals,
    running: Running,
}

fn name(text: &str) -> ActorName {
    text.parse().unwrap()
}

fn digest(number: u8) -> Digest {
    Digest::new([number; 32])
}

fn spec(module: &str) -> ActorSpec {
    let module = match module.strip_prefix("std:") {
        Some(name) => ModuleRef::Builtin { name: name.into() },
        None if module.starts_with('/') => ModuleRef::Path { path: module.into(), pin: None },
        None => ModuleRef::Stem { stem: module.into(), pin: None },
    };
    ActorSpec {
        module,
        keys: GenerationKeys::default(),
        settings: Settings::default(),
        version: None,
        was: None,
        origin: "reflowd.toml:1".into(),
    }
}

fn wire(from: &str, to: &str) -> WireSpec {
    WireSpec {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        overflow: None,
        origin: "reflowd.toml:2".into(),
    }
}

impl Rig {
    fn new() -> Self {
        Self {
            flow: Flow::default(),
            snapshot: Snapshot::default(),
            template: Some(Template::default()),
            retired: Retired::default(),
            refused: BTreeMap::new(),
            bans: Bans::default(),
            recollected: BTreeMap::new(),
            removals: Removals::Guarded,
            running: Running::default(),
        }
    }

    /// `stem.wasm` holds the module of that number.
    fn file(mut self, stem: &str, number: u8) -> Self {
        self.see(stem, Sight::Present(digest(number)));
        self
    }

    fn see(&mut self, stem: &str, sight: Sight<Digest>) {
        self.snapshot.modules.insert(format!("{stem}.wasm").into(), sight);
    }

    /// The configuration has that actor.
    fn actor(mut self, actor: &str, module: &str) -> Self {
        self.flow.actors.insert(name(actor), spec(module));
        self
    }

    fn wire(mut self, from: &str, to: &str) -> Self {
        self.flow.wires.push(wire(from, to));
        self
    }

    fn spec(&mut self, actor: &str) -> &mut ActorSpec {
        self.flow.actors.get_mut(actor).unwrap()
    }

    fn plan(&self) -> Plan {
        let wanted = Wanted {
            flow: &self.flow,
            snapshot: &self.snapshot,
            folder: Path::new(FOLDER),
            autostart: self.template.as_ref(),
            retired: &self.retired,
            refused: &self.refused,
            loading: &BTreeSet::new(),
            bans: &self.bans,
            recollected: &self.recollected,
            removals: self.removals,
        };
        plan(wanted, &self.running)
    }

    /// Does all that can be done, as the daemon would.
    fn run(mut self) -> Self {
        let plan = self.plan();
        for change in plan.changes {
            self.apply(change);
        }
        self.retired.note(&self.flow, Path::new(FOLDER));
        self
    }

    fn apply(&mut self, change: ChangePlan) {
        let Running { actors, wires } = &mut self.running;
        for Starting { actor, spec, digest, autostarted, was, draining: _ } in change.start {
            if let Some(was) = was {
                actors.remove(&was).expect("only an actor that runs is taken over");
            }
            let generation = Generation::FIRST;
            let runs = RunningActor { spec, digest, generation, autostarted, draining: false };
            actors.insert(actor, runs);
        }
        for Swapping { actor, spec, digest, autostarted } in change.swap {
            let runs = actors.get_mut(&actor).expect("only an actor that runs is swapped");
            let generation = runs.generation.next();
            *runs = RunningActor { spec, digest, generation, autostarted, draining: false };
        }
        for Adjusting { actor, spec, autostarted } in change.adjust {
            let runs = actors.get_mut(&actor).expect("only an actor that runs is adjusted");
            runs.spec = spec;
            runs.autostarted = autostarted;
        }
        wires.retain(|wire| !change.cut.contains(wire));
        wires.extend(change.connect);
        for Stopping { actor, .. } in change.stop {
            actors.remove(&actor).expect("only an actor that runs is stopped");
            wires.retain(|wire| wire.from.actor != actor && wire.to.actor != actor);
        }
    }
}

/// A change in one line.
fn line(change: &ChangePlan) -> String {
    let mut words = Vec::new();
    for start in &change.start {
        let was = start.was.as_ref().map(|was| format!("<{was}")).unwrap_or_default();
        let mark = if start.autostarted { "*" } else { "" };
        words.push(format!("+{}{mark}{was}", start.actor));
    }
    words.extend(change.swap.iter().map(|swap| format!("~{}", swap.actor)));
    words.extend(change.adjust.iter().map(|adjust| format!("={}", adjust.actor)));
    words.extend(change.stop.iter().map(|stop| format!("-{}", stop.actor)));
    words.extend(change.connect.iter().map(|wire| format!("{}>{}", wire.from, wire.to)));
    words.extend(change.cut.iter().map(|wire| format!("{}|{}", wire.from, wire.to)));
    words.join(" ")
}

/// The plan has exactly those changes.
#[track_caller]
fn check(rig: &Rig, changes: &[&str]) -> Plan {
    let plan = rig.plan();
    let lines: Vec<_> = plan.changes.iter().map(line).collect();
    assert_eq!(lines, changes, "{plan:#?}");
    plan
}

#[test]
fn what_has_not_changed_is_left_alone() {
    let mut rig = Rig::new()
        .file("count", 1)
        .file("other", 2)
        .actor("a", "count")
        .actor("tick", "std:interval")
        .wire("tick.out", "a.in")
        .run();
    assert_eq!(rig.running.actors.len(), 3);
    assert_eq!(rig.plan(), Plan::default());
    // An edit above it moves an actor's line, and means nothing.
    rig.spec("a").origin = "reflowd.toml:9".into();
    rig.flow.wires[0].origin = "reflowd.toml:19".into();
    assert_eq!(rig.plan(), Plan::default());
}

#[test]
fn a_new_file_starts_an_actor_of_its_name() {
    let mut rig = Rig::new().file("count", 1);
    check(&rig, &["+count*"]);
    rig.template = None;
    check(&rig, &[]);
}

#[test]
fn a_file_that_a_configured_actor_uses_starts_no_other() {
    check(&Rig::new().file("count", 1).actor("a", "count"), &["+a"]);
    let mut rig = Rig::new().file("count", 1).actor("a", "/modules/count.wasm");
    let path = PathBuf::from("/modules/count.wasm");
    rig.snapshot.paths.insert(path, Sight::Present(digest(1)));
    check(&rig, &["+a"]);
}

#[test]
fn a_file_whose_name_does_not_fit_is_noted_and_not_started() {
    let mut rig = Rig::new().file("a.b", 1).file("-x", 2);
    let broken = std::os::unix::ffi::OsStringExt::from_vec(b"\xff.wasm".to_vec());
    rig.snapshot.modules.insert(broken, Sight::Present(digest(3)));
    let plan = check(&rig, &[]);
    assert_eq!(plan.notes.len(), 3);
    assert!(plan.notes.iter().all(|note| matches!(note, Note::NameDoesNotFit { .. })));
}

#[test]
fn a_file_named_like_a_configured_actor_starts_no_second() {
    let plan = check(&Rig::new().file("a", 1).file("b", 2).actor("a", "b"), &["+a"]);
    assert!(matches!(&plan.notes[..], [Note::NameTaken { .. }]));
}

#[test]
fn a_changed_file_swaps_every_actor_that_uses_it() {
    let rig = Rig::new().file("count", 1).actor("a", "count").actor("b", "count").run();
    check(&rig.file("count", 2), &["~a", "~b"]);
    check(&Rig::new().file("count", 1).run().file("count", 2), &["~count"]);
}

#[test]
fn keys_of_a_generation_swap_and_others_apply_in_place() {
    let mut rig = Rig::new().file("count", 1).actor("a", "count").run();
    rig.spec("a").settings.mailbox = 7;
    let plan = check(&rig, &["=a"]);
    assert_eq!(plan.changes[0].adjust[0].spec.settings.mailbox, 7);
    rig.spec("a").keys.memory = 1 << 20;
    check(&rig, &["~a"]);
    let mut rig = Rig::new().file("count", 1).actor("a", "count").run();
    rig.spec("a").version = Some(">=2".into());
    check(&rig, &["=a"]);
}

#[test]
fn the_same_bytes_under_another_name_are_the_same_generation() {
    let rig = Rig::new().file("one", 1).file("two", 1).actor("a", "one").actor("b", "two").run();
    check(&rig.actor("a", "two"), &["=a"]);
}

#[test]
fn a_configured_actor_outlives_its_file() {
    let mut rig = Rig::new().file("count", 1).actor("a", "count").run();
    for (sight, notes) in [
        (Sight::Gone, 1),
        (Sight::Missing, 0),
        (Sight::Unsettled, 0),
        (Sight::Unknown(Trouble::FolderMissing), 1),
    ] {
        rig.see("count", sight);
        let plan = check(&rig, &[]);
        assert_eq!((plan.notes.len(), plan.blocked.len()), (notes, 0), "{plan:?}");
    }
    // It is still there to be configured.
    rig.spec("a").keys.memory = 1 << 20;
    let plan = check(&rig, &["~a"]);
    assert_eq!(plan.changes[0].swap[0].digest, digest(1));
}

#[test]
fn an_autostarted_actor_goes_with_its_file() {
    let mut rig = Rig::new().file("count", 1).file("other", 2).run();
    for sight in [Sight::Missing, Sight::Unsettled, Sight::Unknown(Trouble::FolderMissing)] {
        rig.see("count", sight);
        check(&rig, &[]);
    }
    rig.see("count", Sight::Gone);
    let plan = check(&rig, &["-count"]);
    assert_eq!(plan.changes[0].stop[0].why, StopReason::FileGone);
    // A look after the one that found it gone does not mention it.
    rig.snapshot.modules.remove(OsStr::new("count.wasm"));
    check(&rig, &["-count"]);
}

#[test]
fn a_folder_that_cannot_be_read_stops_nobody() {
    let mut rig = Rig::new().file("count", 1).file("other", 2).run();
    rig.snapshot.modules.clear();
    rig.snapshot.modules_trouble = Some(Trouble::FolderMissing);
    check(&rig, &[]);
}

#[test]
fn an_autostarted_actor_is_adopted_under_its_name() {
    let rig = Rig::new().file("count", 1).run().actor("count", "count");
    let plan = check(&rig, &["=count"]);
    assert!(!plan.changes[0].adjust[0].autostarted);
    let mut rig = rig.run();
    check(&rig, &[]);
    // It belongs to the configuration now, and goes with it.
    rig.flow.actors.clear();
    check(&rig, &["-count"]);
    check(&rig.run(), &[]);
}

#[test]
fn an_autostarted_actor_gives_way_to_a_configured_one_of_its_module() {
    let rig = Rig::new().file("count", 1).run().actor("a", "count");
    let plan = check(&rig, &["+a -count"]);
    assert_eq!(plan.changes[0].stop[0].why, StopReason::Taken { by: name("a") });
    check(&rig.run(), &[]);
}

#[test]
fn an_actor_taken_out_of_the_configuration_is_not_autostarted() {
    let mut rig =
        Rig::new().file("count", 1).file("b", 2).actor("a", "count").actor("b", "b").run();
    rig.removals = Removals::Allowed;
    rig.flow.actors.clear();
    check(&rig, &["-a", "-b"]);
    check(&rig.run(), &[]);
}

#[test]
fn a_renamed_actor_takes_its_mailbox_along() {
    let mut rig = Rig::new().file("count", 1).actor("a", "count").run();
    rig.flow.actors.clear();
    let mut rig = rig.actor("b", "count");
    rig.spec("b").was = Some(name("a"));
    check(&rig, &["+b<a"]);
    // The key may stay where it is.
    check(&rig.run(), &[]);
}

#[test]
fn a_former_name_that_is_still_wanted_moves_nothing() {
    let mut rig = Rig::new().file("count", 1).actor("a", "count").run().actor("b", "count");
    rig.spec("b").was = Some(name("a"));
    check(&rig, &["+b"]);
}

#[test]
fn an_autostarted_actor_can_be_renamed() {
    let mut rig = Rig::new().file("count", 1).file("x", 2).run().actor("b", "x");
    rig.spec("b").was = Some(name("count"));
    check(&rig, &["+b<count -x"]);
}

#[test]
fn a_pin_refuses_other_bytes() {
    let mut rig = Rig::new().file("count", 1).actor("a", "count");
    let pin = |number| ModuleRef::Stem { stem: "count".into(), pin: Some(digest(number)) };
    rig.spec("a").module = pin(2);
    let plan = check(&rig, &[]);
    let doubt = Doubt::Pinned { pin: digest(2), found: digest(1) };
    assert_eq!(plan.blocked[0].because, BTreeMap::from([(name("a"), doubt)]));
    let mut rig = rig.file("count", 2).run();
    check(&rig, &[]);
    // The file changes under the pin: the actor goes on.
    rig.see("count", Sight::Present(digest(3)));
    let plan = check(&rig, &[]);
    assert!(matches!(&plan.notes[..], [Note::GoesOn { doubt: Doubt::Pinned { .. }, .. }]));
    // And follows when the pin does.
    rig.spec("a").module = pin(3);
    check(&rig, &["~a"]);
}

#[test]
fn actors_that_are_not_wired_together_change_apart() {
    let rig = Rig::new()
        .file("m", 1)
        .actor("a", "m")
        .actor("b", "m")
        .actor("c", "m")
        .wire("a.out", "b.in");
    check(&rig, &["+a +b a.out>b.in", "+c"]);
    let rig = rig.run();
    // Cutting the wire is a change of both its ends, and so is a new one.
    let mut rig = rig.file("m", 2);
    rig.flow.wires = vec![wire("b.out", "c.in")];
    let plan = check(&rig, &["~a ~b ~c b.out>c.in a.out|b.in"]);
    assert_eq!(plan.changes[0].around.len(), 3);
    rig = rig.run();
    check(&rig.file("m", 3), &["~a", "~b ~c"]);
}

#[test]
fn who_is_wired_to_a_change_and_stays_as_it_is_is_no_part_of_it() {
    let rig = Rig::new().file("m", 1).file("n", 1).actor("a", "m").actor("b", "n").actor("c", "m");
    let rig = rig.wire("a.out", "b.in").wire("b.out", "c.in").run();
    let plan = check(&rig.file("m", 2), &["~a", "~c"]);
    // What is wired to it decides all the same whether the same change deserves the same answer.
    let around =
        |n: usize| plan.changes[n].around.keys().map(ActorName::as_str).collect::<Vec<_>>();
    assert_eq!((around(0), around(1)), (vec!["a", "b"], vec!["b", "c"]));
}

#[test]
fn a_port_renamed_in_module_and_configuration_is_one_change() {
    let rig = Rig::new().file("m", 1).file("n", 2).actor("a", "m").actor("b", "n");
    let mut rig = rig.wire("a.out", "b.in").run().file("m", 3);
    rig.flow.wires = vec![wire("a.result", "b.in")];
    check(&rig, &["~a a.result>b.in a.out|b.in"]);
}

#[test]
fn a_wire_with_another_overflow_is_another_wire() {
    let rig = Rig::new().file("m", 1).actor("a", "m").actor("b", "m").wire("a.out", "b.in");
    let mut rig = rig.run();
    rig.flow.wires[0].overflow = Some(Overflow::DropNewest);
    check(&rig, &["a.out>b.in a.out|b.in"]);
}

#[test]
fn an_actor_that_stops_keeps_its_way_out() {
    let rig = Rig::new().file("m", 1).actor("a", "m").actor("b", "m").actor("c", "m");
    let mut rig = rig.wire("a.out", "b.in").wire("b.out", "c.in").run();
    rig.flow.actors.remove("b");
    rig.flow.wires.clear();
    check(&rig, &["-b a.out|b.in"]);
    // And while it drains.
    rig.running.actors.get_mut("b").unwrap().draining = true;
    rig.running.wires.retain(|wire| wire.from.actor.as_str() == "b");
    check(&rig, &[]);
}

#[test]
fn an_actor_that_is_wanted_again_stops_draining() {
    let mut rig = Rig::new().file("m", 1).actor("a", "m").run();
    rig.running.actors.get_mut("a").unwrap().draining = true;
    let plan = check(&rig, &["+a"]);
    assert!(plan.changes[0].start[0].draining);
}

#[test]
fn a_missing_module_holds_up_its_group_and_nobody_else() {
    let rig = Rig::new().file("m", 1).actor("a", "m").actor("b", "m").actor("c", "m");
    let rig = rig.wire("a.out", "b.in").run().file("m", 2).actor("b", "none");
    let plan = check(&rig, &["~c"]);
    assert_eq!(plan.blocked[0].because, BTreeMap::from([(name("b"), Doubt::Gone)]));
    assert_eq!(line(&plan.blocked[0].change), "~a");
    assert!(!plan.blocked[0].because[&name("b")].passes());
}

#[test]
fn a_module_that_is_being_written_holds_up_a_start_and_no_swap() {
    let mut rig = Rig::new().file("m", 1).actor("a", "m").actor("b", "new");
    rig.see("new", Sight::Unsettled);
    let plan = check(&rig, &["+a"]);
    assert!(plan.blocked[0].because[&name("b")].passes());
    let mut rig = rig.file("new", 2).wire("a.out", "b.in").run().file("m", 3);
    rig.see("new", Sight::Unsettled);
    check(&rig, &["~a"]);
}

#[test]
fn a_module_refused_for_what_it_is_holds_up_no_neighbour() {
    let rig = Rig::new().file("m", 1).file("n", 2).actor("a", "m").actor("b", "n");
    let mut rig = rig.wire("a.out", "b.in").run().file("m", 3).file("n", 4);
    rig.refused.insert(digest(3), "no export".into());
    let plan = check(&rig, &["~b"]);
    assert!(matches!(&plan.notes[..], [Note::GoesOn { doubt: Doubt::Refused { .. }, .. }]));
    // Keys that came with it may be meant for it.
    rig.spec("a").keys.memory = 1 << 20;
    let plan = check(&rig, &[]);
    assert_eq!(plan.blocked.len(), 1);
}

#[test]
fn a_refused_module_starts_nobody() {
    let mut rig = Rig::new().file("m", 1);
    rig.refused.insert(digest(1), "no export".into());
    let plan = check(&rig, &[]);
    assert!(matches!(&plan.notes[..], [Note::NotStarted { .. }]));
}

#[test]
fn other_defaults_reach_autostarted_actors() {
    let mut rig = Rig::new().file("m", 1).run();
    rig.template.as_mut().unwrap().settings.mailbox = 7;
    check(&rig, &["=m"]);
    rig.template.as_mut().unwrap().keys.memory = 7;
    check(&rig, &["~m"]);
    rig.template = None;
    let plan = check(&rig, &["-m"]);
    assert_eq!(plan.changes[0].stop[0].why, StopReason::AutostartOff);
}

/// Of `running` actors, `removed` leave the configuration.
#[track_caller]
fn check_guard(running: usize, removed: usize, held: bool) {
    let mut rig = Rig::new().file("m", 1);
    for number in 0..running {
        rig = rig.actor(&format!("a{number}"), "m");
    }
    rig = rig.run();
    for number in 0..removed {
        rig.flow.actors.remove(format!("a{number}").as_str());
    }
    rig.snapshot.modules.insert("m.wasm".into(), Sight::Present(digest(2)));
    let plan = rig.plan();
    assert_eq!(plan.held.is_some(), held, "{removed} of {running}");
    let stops: usize = plan.changes.iter().map(|change| change.stop.len()).sum();
    let swaps: usize = plan.changes.iter().map(|change| change.swap.len()).sum();
    assert_eq!(stops, if held { 0 } else { removed });
    assert_eq!(swaps, running - removed, "what is no removal is done all the same");
    rig.removals = Removals::Allowed;
    assert_eq!(rig.plan().held, None);
}

#[test]
fn removing_more_than_half_and_more_than_one_is_held() {
    check_guard(1, 1, false);
    check_guard(2, 1, false);
    check_guard(2, 2, true);
    check_guard(3, 1, false);
    check_guard(3, 2, true);
    check_guard(4, 2, false);
    check_guard(4, 3, true);
    check_guard(10, 5, false);
    check_guard(10, 6, true);
    check_guard(10, 10, true);
}

#[test]
fn actors_that_give_way_are_no_removals() {
    let mut rig = Rig::new().file("a", 1).file("b", 2).file("c", 3).run();
    for (actor, module) in [("x", "a"), ("y", "b"), ("z", "c")] {
        rig = rig.actor(actor, module);
    }
    check(&rig, &["+x -a", "+y -b", "+z -c"]);
}

/// A disk of few files, actors and wires, so that they meet.
#[derive(Clone, Debug)]
struct Disk {
    /// Stem and module.
    files: Vec<(u8, u8)>,
    /// Name, stem, and whether the name is that of a file.
    actors: Vec<(u8, u8, bool)>,
    wires: Vec<(u8, u8)>,
}

fn any_disk() -> impl Strategy<Value = Disk> {
    let files = prop::collection::vec((0..5_u8, 1..4_u8), 0..5);
    let actors = prop::collection::vec((0..5_u8, 0..5_u8, any::<bool>()), 0..5);
    let wires = prop::collection::vec((0..5_u8, 0..5_u8), 0..5);
    (files, actors, wires).prop_map(|(files, actors, wires)| Disk { files, actors, wires })
}

impl Rig {
    /// Replaces disk, leaving alone what runs.
    fn disk(mut self, Disk { files, actors, wires }: Disk) -> Self {
        self.snapshot = Snapshot::default();
        self.flow = Flow::default();
        for (stem, number) in files {
            self = self.file(&format!("m{stem}"), number);
        }
        for (actor, stem, clash) in actors {
            let actor = if clash { format!("m{actor}") } else { format!("a{actor}") };
            self = self.actor(&actor, &format!("m{stem}"));
        }
        for (from, to) in wires {
            let (from, to) = (format!("a{from}"), format!("a{to}"));
            let new = wire(&format!("{from}.out"), &format!("{to}.in"));
            let ends = [&from, &to].iter().all(|end| self.flow.actors.contains_key(end.as_str()));
            if ends && !self.flow.wires.contains(&new) {
                self.flow.wires.push(new);
            }
        }
        self
    }
}

proptest! {
    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(first in any_disk(), second in any_disk()) {
        let mut rig = Rig::new();
        rig.removals = Removals::Allowed;
        let rig = rig.disk(first).run().disk(second).run();
        let plan = rig.plan();
        prop_assert!(plan.changes.is_empty(), "{:#?}", plan);
        for (name, actor) in &rig.running.actors {
            let configured = rig.flow.actors.contains_key(name);
            prop_assert!(configured != actor.autostarted || !plan.blocked.is_empty());
        }
    }

    #[test]
    fn every_actor_is_changed_once(first in any_disk(), second in any_disk()) {
        let mut rig = Rig::new();
        rig.removals = Removals::Allowed;
        let plan = rig.disk(first).run().disk(second).plan();
        let mut seen = BTreeSet::new();
        for change in &plan.changes {
            let starts = change.start.iter().map(|start| &start.actor);
            let swaps = change.swap.iter().map(|swap| &swap.actor);
            let adjusts = change.adjust.iter().map(|adjust| &adjust.actor);
            let stops = change.stop.iter().map(|stop| &stop.actor);
            for actor in starts.chain(swaps).chain(adjusts).chain(stops) {
                prop_assert!(seen.insert(actor.clone()), "{} twice in {:#?}", actor, plan);
            }
        }
    }
}

#[test]
fn a_connector_has_a_digest_of_its_own() {
    assert_eq!(builtin_digest("interval"), builtin_digest("interval"));
    assert_ne!(builtin_digest("interval"), builtin_digest("stdout"));
}

#[test]
fn what_an_actor_was_rolled_back_from_is_not_taken_up_again() {
    let keys = GenerationKeys::default();
    let mut rig = Rig::new().file("m", 1).actor("a", "m").actor("b", "m").run();
    rig.see("m", Sight::Present(digest(2)));
    let ban = crate::Ban { digest: digest(2), keys: keys.clone(), why: "`a` trapped".into() };
    rig.bans.add(&name("a"), ban);
    let plan = rig.plan();
    let swapped = |plan: &Plan| -> Vec<ActorName> {
        let swaps = plan.changes.iter().flat_map(|change| &change.swap);
        swaps.map(|swap| swap.actor.clone()).collect()
    };
    assert_eq!(swapped(&plan), [name("b")]);
    let doubt = Doubt::Banned { digest: digest(2), why: "`a` trapped".into() };
    assert_eq!(plan.notes, [Note::GoesOn { actor: name("a"), doubt }]);

    // What applies in place does so, for the keys that run.
    rig.spec("a").settings.retries = 7;
    let plan = rig.plan();
    let adjusts: Vec<_> = plan.changes.iter().flat_map(|change| &change.adjust).collect();
    assert_eq!((adjusts.len(), &adjusts[0].spec.keys), (1, &keys));

    // Other keys and other bytes are something else.
    rig.spec("a").keys.memory += 1;
    assert_eq!(swapped(&rig.plan()), [name("a"), name("b")]);
    rig.spec("a").keys.memory -= 1;
    rig.see("m", Sight::Present(digest(3)));
    assert_eq!(swapped(&rig.plan()), [name("a"), name("b")]);
}

#[test]
fn keys_that_an_actor_was_rolled_back_from_stay_out() {
    let mut rig = Rig::new().file("m", 1).actor("a", "m").run();
    rig.spec("a").keys.memory += 1;
    let keys = rig.spec("a").keys.clone();
    rig.bans.add(&name("a"), crate::Ban { digest: digest(1), keys, why: "`a` trapped".into() });
    rig.spec("a").settings.retries = 7;
    let plan = rig.plan();
    assert_eq!((plan.changes.len(), plan.notes.len()), (1, 1));
    assert_eq!(plan.changes[0].adjust[0].spec.keys, GenerationKeys::default());
    assert!(plan.changes[0].swap.is_empty());
}

#[test]
fn what_an_actor_was_rolled_back_from_is_not_taken_up_under_another_name() {
    let mut rig = Rig::new().file("m", 1).actor("a", "m").run();
    rig.see("m", Sight::Present(digest(2)));
    let keys = GenerationKeys::default();
    rig.bans.add(&name("a"), crate::Ban { digest: digest(2), keys, why: "`a` trapped".into() });
    rig.flow.actors.remove("a");
    let mut rig = rig.actor("b", "m");
    rig.spec("b").was = Some(name("a"));
    let plan = rig.plan();
    let [change] = &plan.changes[..] else { panic!("{plan:?}") };
    let start = &change.start[0];
    assert_eq!((start.digest, &start.was), (digest(1), &Some(name("a"))));
}

#[test]
fn an_actor_takes_nobody_over_while_its_name_is_still_in_use() {
    let rig = Rig::new().file("m", 1).actor("a", "m").actor("b", "m").run();
    let mut rig = rig;
    rig.running.actors.get_mut(&name("a")).unwrap().draining = true;
    rig.flow.actors.remove("b");
    rig.spec("a").was = Some(name("b"));
    let plan = rig.plan();
    assert!(plan.changes.iter().flat_map(|change| &change.start).all(|start| start.was.is_none()));
    let stops: Vec<_> = plan.changes.iter().flat_map(|change| &change.stop).collect();
    assert_eq!(stops[0].actor, name("b"));
}

#[test]
fn the_version_that_goes_with_what_is_banned_stays_out() {
    let mut rig = Rig::new().file("m", 1).actor("a", "m").run();
    rig.see("m", Sight::Present(digest(2)));
    let keys = GenerationKeys::default();
    rig.bans.add(&name("a"), crate::Ban { digest: digest(2), keys, why: "`a` trapped".into() });
    rig.spec("a").version = Some(">=2".into());
    assert!(rig.plan().changes.is_empty());
    rig.spec("a").settings.retries = 7;
    assert_eq!(rig.plan().changes[0].adjust[0].spec.version, None);
}

/// What `a` ran in an earlier process: the module of that number.
fn ran(number: u8) -> RunningActor {
    RunningActor {
        spec: spec("m"),
        digest: digest(number),
        generation: Generation::FIRST,
        autostarted: false,
        draining: false,
    }
}

#[test]
fn an_actor_starts_as_what_it_ran_before_the_restart() {
    let mut rig = Rig::new().actor("a", "m");
    rig.recollected.insert(name("a"), ran(1));
    rig.template = None;
    for (what, sight) in [
        ("other bytes", Sight::Present(digest(2))),
        ("bytes that were refused", Sight::Present(digest(9))),
        ("a file that is gone", Sight::Gone),
    ] {
        rig.refused.insert(digest(9), "bad".into());
        rig.see("m", sight);
        let plan = rig.plan();
        assert!(plan.blocked.is_empty(), "{what}");
        assert_eq!(plan.changes[0].start[0].digest, digest(1), "{what}");
    }
    rig.see("m", Sight::Present(digest(2)));
    rig.spec("a").keys.memory += 1;
    let start = rig.plan().changes.remove(0).start.remove(0);
    assert_eq!((start.digest, start.spec.keys), (digest(1), GenerationKeys::default()));
}

#[test]
fn what_an_actor_ran_before_the_restart_is_left_where_it_cannot_be() {
    let mut rig = Rig::new().file("m", 2).actor("a", "m");
    rig.recollected.insert(name("a"), ran(1));
    rig.refused.insert(digest(1), "bad".into());
    assert_eq!(rig.plan().changes[0].start[0].digest, digest(2));
    rig.refused.clear();
    let pin = Some(digest(2));
    rig.spec("a").module = ModuleRef::Stem { stem: "m".into(), pin };
    assert_eq!(rig.plan().changes[0].start[0].digest, digest(2));
}

#[test]
fn a_module_that_may_have_been_banned_starts_no_actor_and_swaps_one_that_runs() {
    let mut rig = Rig::new().file("m", 1).actor("a", "m");
    rig.bans = Bans::suspecting([digest(1)].into());
    let plan = rig.plan();
    let doubt = Doubt::Suspect { digest: digest(1) };
    assert_eq!(plan.blocked[0].because[&name("a")], doubt, "{plan:?}");
    rig.see("m", Sight::Present(digest(2)));
    let mut rig = rig.run();
    rig.see("m", Sight::Present(digest(1)));
    assert_eq!(rig.plan().changes[0].swap[0].digest, digest(1));
}

#[test]
fn an_actor_does_not_start_as_what_it_was_rolled_back_from() {
    let mut rig = Rig::new().file("m", 2).actor("a", "m");
    let keys = GenerationKeys::default();
    rig.bans.add(&name("a"), crate::Ban { digest: digest(2), keys, why: "`a` trapped".into() });
    let plan = rig.plan();
    assert!(matches!(plan.blocked[0].because[&name("a")], Doubt::Banned { .. }), "{plan:?}");
    rig.recollected.insert(name("a"), ran(1));
    assert_eq!(rig.plan().changes[0].start[0].digest, digest(1));
}
