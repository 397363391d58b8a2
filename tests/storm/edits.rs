//! Edits of the configuration at random, beside a model of what they ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde_json::{Value, json};

use super::{Row, nothing_changed, sha256, size, version};
use crate::{
    random::Random,
    rig::{Daemon, World, guest},
};

const HEAD: &str = "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nquiet = \"10ms\"\n\
                    autostart = false\n";

const MODULES: [&str; 3] = ["relay", "stamp", "work"];

/// Actors that there are at the most.
const MOST: usize = 8;

/// What is asked of one actor.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    module: &'static str,
    mailbox: u64,
    retries: u64,
    was: Option<String>,
    /// Nothing after a change of name, until it is seen.
    generation: Option<u64>,
}

/// The configuration. Actors are by number, and wires go from lower to higher ones, so that
/// there is no cycle; a name is a letter, which may change, and the number.
#[derive(Clone, Debug)]
struct Model {
    actors: BTreeMap<u64, (char, Wanted)>,
    wires: BTreeSet<(u64, u64)>,
    next: u64,
}

impl Model {
    fn new() -> Self {
        let mut model = Self { actors: BTreeMap::new(), wires: BTreeSet::new(), next: 1 };
        model.add("relay");
        model.add("work");
        model
    }

    fn add(&mut self, module: &'static str) {
        let wanted = Wanted { module, mailbox: 10, retries: 2, was: None, generation: Some(1) };
        self.actors.insert(self.next, ('a', wanted));
        self.next += 1;
    }

    fn name(&self, actor: u64) -> String {
        format!("{}{actor}", self.actors[&actor].0)
    }

    fn any(&self, random: &mut Random) -> u64 {
        random.one_of(&self.actors.keys().copied().collect::<Vec<_>>())
    }

    /// Changes one thing, and says what.
    fn edit(&mut self, random: &mut Random) -> &'static str {
        for (_, wanted) in self.actors.values_mut() {
            wanted.was = None;
        }
        let actor = self.any(random);
        match random.below(8) {
            0 if self.actors.len() < MOST => {
                self.add(random.one_of(&MODULES));
                "add"
            }
            1 if self.actors.len() > 1 => {
                self.actors.remove(&actor);
                self.wires.retain(|(from, to)| *from != actor && *to != actor);
                "remove"
            }
            kind @ (2 | 3) => {
                let name = self.name(actor);
                let (letter, wanted) = self.actors.get_mut(&actor).unwrap();
                *letter = char::from(b'a' + (*letter as u8 - b'a' + 1) % 26);
                wanted.generation = None;
                wanted.was = (kind == 2).then_some(name);
                if kind == 2 { "rename" } else { "rename without `was`" }
            }
            4 => {
                let (_, wanted) = self.actors.get_mut(&actor).unwrap();
                let others: Vec<_> = MODULES.into_iter().filter(|m| *m != wanted.module).collect();
                wanted.module = random.one_of(&others);
                wanted.generation = wanted.generation.map(|generation| generation + 1);
                "change a module"
            }
            5 => {
                let (_, wanted) = self.actors.get_mut(&actor).unwrap();
                wanted.mailbox = 1 + random.below(1000);
                wanted.retries = random.below(10);
                "change settings"
            }
            _ => {
                let other = self.any(random);
                let wire = (actor.min(other), actor.max(other));
                if wire.0 != wire.1 && !self.wires.remove(&wire) {
                    self.wires.insert(wire);
                }
                "rewire"
            }
        }
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for (actor, (_, wanted)) in &self.actors {
            let Wanted { module, mailbox, retries, was, .. } = wanted;
            let name = self.name(*actor);
            write!(text, "[actors.{name}]\nmodule = \"{module}\"\n").unwrap();
            write!(text, "mailbox = {mailbox}\nretries = {retries}\n").unwrap();
            if let Some(was) = was {
                writeln!(text, "was = \"{was}\"").unwrap();
            }
        }
        for (from, to) in &self.wires {
            text.push_str(&wire(&format!("{}.out", self.name(*from)), &self.name(*to)));
        }
        text
    }

    /// What should run, as [`running`] shows it.
    fn wanted(&self, digests: &BTreeMap<&str, String>) -> Running {
        let actor = |(actor, (_, wanted)): (&u64, &(char, Wanted))| {
            let digest = digests[wanted.module].clone();
            (self.name(*actor), (digest, wanted.mailbox, wanted.retries, wanted.generation))
        };
        let end = |actor: &u64, port: &str| format!("{}.{port}", self.name(*actor));
        Running {
            actors: self.actors.iter().map(actor).collect(),
            wires: self.wires.iter().map(|(a, b)| (end(a, "out"), end(b, "in"))).collect(),
        }
    }
}

fn wire(from: &str, to: &str) -> String {
    format!("[[wires]]\nfrom = \"{from}\"\nto = \"{to}.in\"\n")
}

/// What runs: of each actor module, mailbox, retries and generation; and the wires.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Running {
    actors: BTreeMap<String, (String, u64, u64, Option<u64>)>,
    wires: BTreeSet<(String, String)>,
}

impl Running {
    /// The same, and generations where only one of both knows them are as the other says.
    fn fits(&self, wanted: &Self) -> bool {
        let mut wanted = wanted.clone();
        for (name, actor) in &mut wanted.actors {
            actor.3 = actor.3.or(self.actors.get(name).and_then(|actor| actor.3));
        }
        *self == wanted
    }
}

fn running(daemon: &Daemon) -> Running {
    let mut running = Running { actors: BTreeMap::new(), wires: BTreeSet::new() };
    for actor in daemon.get("/v1/actors").json().as_array().unwrap() {
        // One that is listed and has no generation does not run.
        if actor["generation"].is_null() {
            continue;
        }
        let name = actor["name"].as_str().unwrap();
        let detail = daemon.actor(name);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let shown = (
            text(&detail["digest"]),
            detail["settings"]["mailbox"].as_u64().unwrap_or_default(),
            detail["settings"]["retries"].as_u64().unwrap_or_default(),
            detail["generation"].as_u64(),
        );
        running.actors.insert(name.to_owned(), shown);
        let wires = detail["wires"].as_array().into_iter().flatten();
        running.wires.extend(wires.map(|wire| (text(&wire["from"]), text(&wire["to"]))));
    }
    running
}

/// What a fault keeps from happening.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The files show it by themselves, so nothing of them has any effect.
    Everything,
    /// It takes a module to see it, so the group of the actor concerned stays as it is.
    Group,
}

use Reach::{Everything, Group};

/// A way for a configuration to be wrong: its name, its reach, and the text that goes wrong.
type Fault = (&'static str, Reach, fn(&Model, String, u64) -> String);

const FAULTS: [Fault; 10] = [
    ("no TOML", Everything, |_, text, _| text + "[[[\n"),
    ("cut short", Everything, |_, text, _| {
        text.trim_end().trim_end_matches(']').to_owned() + "\n[actors.cut"
    }),
    ("an unknown key", Everything, |model, text, actor| {
        let table = format!("[actors.{}]\n", model.name(actor));
        text.replace(&table, &format!("{table}mailbxo = 5\n"))
    }),
    ("an unknown table", Everything, |_, text, _| text + "[actor.b]\nmodule = \"relay\"\n"),
    ("no module", Group, |model, text, actor| {
        text + "[actors.new]\nmodule = \"nowhere\"\n" + &wire(&(model.name(actor) + ".out"), "new")
    }),
    ("no outport", Group, |model, text, actor| {
        text + "[actors.new]\nmodule = \"relay\"\n" + &wire(&(model.name(actor) + ".ou"), "new")
    }),
    ("no actor at a wire's end", Everything, |model, text, actor| {
        text + &wire(&(model.name(actor) + ".out"), "nobody")
    }),
    ("a wrong value", Everything, |_, text, _| {
        text + "[actors.new]\nmodule = \"relay\"\ntimeout = 5\n"
    }),
    ("a table twice", Everything, |model, text, actor| {
        text + &format!("[actors.{}]\nmodule = \"relay\"\n", model.name(actor))
    }),
    ("a key that needs a restart", Everything, |_, text, _| text.replace("10ms", "11ms")),
];

#[test]
fn after_edits_at_random_what_runs_is_what_the_model_says() {
    let mut random = Random::seeded();
    let each = size(100, 1000);
    let modules = [guest("relay"), guest("stamp-a"), version(0)];
    let digests: BTreeMap<&str, String> =
        MODULES.into_iter().zip(modules.iter().map(|bytes| sha256(bytes))).collect();
    let mut model = Model::new();
    let world = World::new(&model.text());
    MODULES.into_iter().zip(&modules).for_each(|(stem, bytes)| world.module(stem, bytes));
    let daemon = world.start();
    let (mut valid, mut invalid) = (0, 0);
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    while valid + invalid < 2 * each {
        if random.index(2 * each - valid - invalid) < each - valid {
            let kind = model.edit(&mut random);
            daemon.world.config(&model.text());
            let report = daemon.post("/v1/reload?allow_removal=true", "").json();
            let clean = (&report["refused"], &report["held"]);
            assert_eq!(clean, (&json!([]), &Value::Null), "{kind}: {report}\n{}", model.text());
            // An actor that was removed may still be seen on its way out.
            let wanted = model.wanted(&digests);
            let what = format!("after {kind} there runs {wanted:#?}\n{}", model.text());
            daemon.until(&what, |d| running(d).fits(&wanted));
            for (actor, (letter, wanted)) in &mut model.actors {
                let now = daemon.actor(&format!("{letter}{actor}"))["generation"].as_u64();
                wanted.generation = now;
            }
            *kinds.entry(kind).or_default() += 1;
            valid += 1;
        } else {
            let (kind, reach, fault) = random.one_of(&FAULTS);
            // Right edits in the same file have no effect either, unless another group could have it.
            let mut wrong = model.clone();
            if reach == Everything {
                wrong.edit(&mut random);
            }
            let actor = wrong.any(&mut random);
            let text = fault(&wrong, wrong.text(), actor);
            daemon.world.config(&text);
            let report = daemon.post("/v1/reload?allow_removal=true", "").json();
            assert_ne!(report["refused"], json!([]), "{kind}: {report}\n{text}");
            nothing_changed(&report);
            let (runs, wanted) = (running(&daemon), model.wanted(&digests));
            assert!(runs.fits(&wanted), "{kind}: {runs:#?} instead of {wanted:#?}\n{text}");
            *kinds.entry(kind).or_default() += 1;
            invalid += 1;
        }
    }
    Row {
        name: "configuration edits",
        size: format!("{valid} valid, {invalid} invalid"),
        messages: None,
        figures: format!("what runs is what the model says after each; {kinds:?}"),
    }
    .print();
}
