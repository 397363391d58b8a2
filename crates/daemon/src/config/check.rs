//! Whether actors and wires can work together.
//!
//! Pure: what the modules are like is asked of a function, so the same check
//! serves the command line, which loads modules to look at them, and the
//! running daemon, which has them.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use reflowd_hot_reload::{ModuleRef, WireSpec};
use reflowd_runtime::{
    ActorName, ERROR_PORT, Metadata, Overflow, Port, PortName, PortRef, Trigger, Type,
};

use super::{
    Config, WirePlace,
    names::{list, similar},
    report::{Diagnostic, Place, Report},
};
use crate::connector;

/// Unknown names for which a similar name is suggested. Each search goes through all names, and
/// nobody reads more problems than this.
const MAX_HINTS: usize = 200;

/// How many actors of a cycle are named: a reader finds the rest from these.
const MAX_SHOWN: usize = 10;

/// What is known of a module.
pub(crate) enum Lookup {
    /// It can be loaded, and says this of itself.
    Known(Metadata),
    /// There is no such file or connector.
    Missing {
        /// The path that was tried; `None` for a connector.
        looked_at: Option<PathBuf>,
        /// The names that there are. Each module that is missing has the same.
        names: Arc<[String]>,
    },
    /// It is to be downloaded, and nothing is known of it before.
    Awaited,
    /// It cannot be downloaded.
    NotDownloaded {
        /// What the loader says.
        why: String,
    },
    /// It is there and cannot be used.
    Broken {
        /// What the loader says.
        why: String,
    },
}

/// Checks modules, ports, types and cycles. Empty where everything fits.
pub(crate) fn check_flow<'c>(
    config: &'c Config,
    lookup: &'c dyn Fn(&ModuleRef) -> Lookup,
) -> Report {
    let mut modules: BTreeMap<&ModuleRef, Lookup> = BTreeMap::new();
    for spec in config.flow.actors.values() {
        modules.entry(&spec.module).or_insert_with(|| lookup(&spec.module));
    }
    let connectors = config.flow.actors.iter().filter_map(|(actor, spec)| {
        let ModuleRef::Builtin { name } = &spec.module else { return None };
        let builtin = connector::find(&format!("std:{name}"))?;
        let own = builtin.has_ports_by_config();
        own.then(|| (actor, builtin.metadata_with(&spec.keys.config)))
    });
    let connectors = connectors.collect();
    let check = Check { config, modules, connectors, lookup, hints: Cell::new(MAX_HINTS) };
    let mut found = Vec::new();
    check.modules(&mut found);
    for (wire, place) in check.wires() {
        check.wire(wire, place, &mut found);
    }
    for (wait, place) in config.flow.waits.iter().zip(&config.places.waits) {
        let ends = [&wait.actor, &wait.port.actor];
        let asked = Asked { end: End::From, what: "this route waits for", ends };
        check.port(asked, (&wait.port, place), &mut found);
    }
    check.cycles(&mut found);
    check.joins(&mut found);
    check.pins(&mut found);
    check.sources(&mut found);
    let mut report = Report::new(config.sources.clone());
    report.extend(found);
    report
}

struct Check<'c> {
    config: &'c Config,
    modules: BTreeMap<&'c ModuleRef, Lookup>,
    /// What connectors are like whose ports follow from the configuration of the actor;
    /// nothing, where that does not fit.
    connectors: BTreeMap<&'c ActorName, Option<Metadata>>,
    lookup: &'c dyn Fn(&ModuleRef) -> Lookup,
    /// Suggestions that may still be searched for.
    hints: Cell<usize>,
}

fn is_connector(module: &ModuleRef) -> bool {
    matches!(module, ModuleRef::Builtin { .. })
}

/// What is asked of a port: as which end, what is said of it, and between whom it is.
#[derive(Clone, Copy)]
struct Asked<'a> {
    end: End,
    what: &'a str,
    ends: [&'a ActorName; 2],
}

/// One end of a wire.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    From,
    To,
}

impl<'c> Check<'c> {
    fn wires(&self) -> impl Iterator<Item = (&'c WireSpec, &'c WirePlace)> + use<'c> {
        self.config.flow.wires.iter().zip(&self.config.places.wires)
    }

    fn metadata(&self, actor: &ActorName) -> Option<&Metadata> {
        if let Some(connector) = self.connectors.get(actor) {
            return connector.as_ref();
        }
        let spec = self.config.flow.actors.get(actor)?;
        match self.modules.get(&spec.module)? {
            Lookup::Known(metadata) => Some(metadata),
            _ => None,
        }
    }

    fn key(&self, actor: &ActorName, key: &str) -> Option<&Place> {
        self.config.places.actor_keys.get(&(actor.clone(), key.to_owned()))
    }

    fn modules(&self, found: &mut Vec<Diagnostic>) {
        for (actor, spec) in &self.config.flow.actors {
            let place = self.key(actor, "module");
            let misfit = |problem: Diagnostic| problem.between([actor.clone()]);
            match &self.modules[&spec.module] {
                Lookup::Known(_) | Lookup::Awaited => {}
                Lookup::NotDownloaded { why } => {
                    let message = format!("{} is not to be had", title(&spec.module));
                    let problem = Diagnostic::error("E0208", message).at_some(place, "").note(why);
                    found.push(misfit(problem));
                }
                Lookup::Missing { looked_at, names } => {
                    let names = if self.takes_hint() { &names[..] } else { &[] };
                    let problem = missing(&spec.module, looked_at.as_ref(), names, place);
                    found.push(if is_connector(&spec.module) { problem } else { misfit(problem) });
                }
                Lookup::Broken { why } => {
                    let message = format!("{} cannot be used", title(&spec.module));
                    let problem = Diagnostic::error("E0206", message).at_some(place, "").note(why);
                    found.push(misfit(problem.help("put a good module there, or name another; `reflowd inspect FILE` tells what is wrong with a file")));
                }
            }
        }
    }

    fn wire(&self, wire: &WireSpec, place: &WirePlace, found: &mut Vec<Diagnostic>) {
        let ends = [&wire.from.actor, &wire.to.actor];
        let from = Asked { end: End::From, what: "this wire comes from", ends };
        let from = self.port(from, (&wire.from, &place.from), found);
        let to = Asked { end: End::To, what: "this wire goes to", ends };
        let to = self.port(to, (&wire.to, &place.to), found);
        let (Some(from), Some(to)) = (from, to) else { return };
        if from.iter().any(|from| from.can_fit(to[0])) {
            return;
        }
        let message = format!("what `{}` gives never fits `{}`", wire.from, wire.to);
        let problem = Diagnostic::error("E0203", message)
            .at(&place.to, format!("takes {}", to[0]))
            .at(&place.from, format!("gives {}", from[0]))
            .help("wire ports of types that fit, or put an actor between them that converts");
        let connectors = ends.iter().all(|actor| self.is_connector(actor));
        found.push(if connectors { problem } else { problem.between(ends.map(Clone::clone)) });
    }

    /// Whether the actor is a connector, whose ports are known without loading a module.
    fn is_connector(&self, actor: &ActorName) -> bool {
        self.config.flow.actors.get(actor).is_some_and(|spec| is_connector(&spec.module))
    }

    /// The types that a port may have which stands there. `None` where it has none, or where
    /// nobody can know.
    fn port(
        &self,
        Asked { end, what, ends }: Asked<'_>,
        (port, place): (&PortRef, &Place),
        found: &mut Vec<Diagnostic>,
    ) -> Option<Vec<Type>> {
        let places = &self.config.places;
        if !places.actors.contains_key(&port.actor) {
            // It may stand in the file that could not be read.
            if !places.incomplete {
                found.push(self.unknown_actor(what, &port.actor, place));
            }
            return None;
        }
        let metadata = self.metadata(&port.actor)?;
        let (ports, kind) = match end {
            End::From => (&metadata.outports, "outport"),
            End::To => (&metadata.inports, "inport"),
        };
        let declared = ports.iter().find(|p| p.name == port.port).map(|p| p.port_type);
        let own = (end == End::From && port.port.as_str() == ERROR_PORT).then_some(Type::Error);
        let types: Vec<_> = declared.into_iter().chain(own).collect();
        if !types.is_empty() {
            return Some(types);
        }
        let names = || ports.iter().map(|port| port.name.as_str());
        let message = format!("`{}` has no {kind} `{}`", port.actor, port.port);
        let has = match names().count() {
            0 => format!("it has no {kind}s at all"),
            1 => format!("its {kind} is {}", list(names())),
            _ => format!("its {kind}s are {}", list(names())),
        };
        let close = similar(port.port.as_str(), names());
        let problem = Diagnostic::error("E0202", message)
            .at(&self.part(place, End::To), format!("no such {kind}"))
            .at_some(self.key(&port.actor, "module"), "the module that it runs")
            .note(has)
            .help_some(close.map(|name| format!("did you mean `{}.{name}`?", port.actor)));
        let alone = self.is_connector(&port.actor);
        found.push(if alone { problem } else { problem.between(ends.map(Clone::clone)) });
        None
    }

    fn unknown_actor(&self, what: &str, actor: &ActorName, place: &Place) -> Diagnostic {
        let places = &self.config.places;
        let message = format!("{what} `{actor}`, and there is no such actor");
        let problem =
            Diagnostic::error("E0201", message).at(&self.part(place, End::From), "no such actor");
        if !self.takes_hint() {
            return problem;
        }
        match similar(actor.as_str(), places.actors.keys().map(ActorName::as_str)) {
            Some(name) => problem
                .at_some(places.actors.get(name), "an actor with a similar name")
                .help(format!("did you mean `{name}`?")),
            None => problem.help(self.how_to_add(actor)),
        }
    }

    /// Takes one of the suggestions that are left, if there is one.
    fn takes_hint(&self) -> bool {
        let left = self.hints.get().checked_sub(1);
        self.hints.set(left.unwrap_or(0));
        left.is_some()
    }

    /// A module that was dropped in starts an actor by itself, which can be wired once it is written down.
    fn how_to_add(&self, actor: &ActorName) -> String {
        let module = ModuleRef::Stem { stem: actor.to_string(), pin: None };
        let is_there = match (self.lookup)(&module) {
            Lookup::Known(_) => true,
            // `check` loads no module that the configuration does not name.
            Lookup::Missing { names, .. } => names.iter().any(|name| name == actor.as_str()),
            _ => false,
        };
        if is_there {
            format!(
                "there is a module `{actor}`: to wire its actor, add `[actors.{actor}]` with `module = \"{actor}\"`"
            )
        } else {
            format!("add `[actors.{actor}]` with its `module`")
        }
    }

    /// The actor's or the port's part of `"actor.port"`: before or after the dot.
    fn part(&self, place: &Place, end: End) -> Place {
        let text = self.config.sources.text(&place.file);
        let quoted = text.get(place.span.clone()).unwrap_or_default();
        let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
        // Where the string is written with escapes, the whole of it has to do.
        let Some((actor, port)) =
            inner.split_once('.').filter(|_| !inner.contains(['\\', '"', '\'']))
        else {
            return place.clone();
        };
        let start = place.span.start + 1;
        let span = match end {
            End::From => start..start + actor.len(),
            End::To => start + actor.len() + 1..start + actor.len() + 1 + port.len(),
        };
        Place { file: place.file.clone(), span }
    }

    /// Reports cycles on which every mailbox makes its senders wait: once all are full, none ever empties.
    fn cycles(&self, found: &mut Vec<Diagnostic>) {
        let mut graph = Graph::default();
        let mut places: BTreeMap<(&ActorName, &ActorName), &Place> = BTreeMap::new();
        for (wire, place) in self.wires() {
            let Some(to) = self.config.flow.actors.get(&wire.to.actor) else { continue };
            if wire.overflow.unwrap_or(to.settings.overflow) == Overflow::Block {
                let (from, to) = (&wire.from.actor, &wire.to.actor);
                graph.entry(from).or_default().insert(to);
                places.entry((from, to)).or_insert(&place.to);
            }
        }
        for cycle in cycles(&graph) {
            let message = format!("the cycle {} can come to a standstill", way(&cycle));
            let mut problem = Diagnostic::error("E0204", message);
            let next = cycle.iter().skip(1).chain([&cycle[0]]);
            for (i, (from, to)) in cycle.iter().zip(next).enumerate().take(MAX_SHOWN) {
                let text = if i == 0 { "every mailbox on it waits for the next" } else { "" };
                problem = problem.at(places[&(*from, *to)], text);
            }
            found.push(problem.help("give one of these wires, or one of the actors, `overflow = \"drop-oldest\"` or \"drop-newest\""));
        }
    }

    /// Warns of joins that go without an inport that their module calls required.
    fn joins(&self, found: &mut Vec<Diagnostic>) {
        let wires = self.config.flow.wires.iter();
        let wired: BTreeSet<(&ActorName, &PortName)> =
            wires.map(|wire| (&wire.to.actor, &wire.to.port)).collect();
        for (actor, spec) in &self.config.flow.actors {
            if spec.settings.trigger != Trigger::All {
                continue;
            }
            let ports = self.metadata(actor).map_or(&[][..], |metadata| &metadata.inports);
            let lacks = |port: &&Port| port.required && !wired.contains(&(actor, &port.name));
            for port in ports.iter().filter(lacks) {
                let message =
                    format!("nothing is wired to `{actor}.{}`, which is required", port.name);
                let place =
                    self.key(actor, "trigger").or_else(|| self.config.places.actors.get(actor));
                found.push(
                    Diagnostic::warning("W0401", message)
                        .at_some(place, "joins the other inports without it")
                        .help(format!("add a wire to `{actor}.{}`", port.name)),
                );
            }
        }
    }

    /// Warns of sources whose messages go nowhere.
    fn sources(&self, found: &mut Vec<Diagnostic>) {
        if self.config.places.unread_wires || self.config.places.incomplete {
            return;
        }
        let wired: BTreeSet<&ActorName> =
            self.config.flow.wires.iter().map(|wire| &wire.from.actor).collect();
        for actor in self.config.flow.actors.keys().filter(|actor| !wired.contains(actor)) {
            let Some(metadata) = self.metadata(actor) else { continue };
            let [port, ..] = &metadata.outports[..] else { continue };
            if metadata.inports.is_empty() {
                let message = format!("nothing is wired to what `{actor}` puts out");
                found.push(
                    Diagnostic::warning("W0406", message)
                        .at_some(self.key(actor, "module"), "its messages go nowhere")
                        .help(format!("add a wire from `{actor}.{}`", port.name)),
                );
            }
        }
    }

    /// Warns of actors that hold secrets or reach out, and run whatever is in a file.
    fn pins(&self, found: &mut Vec<Diagnostic>) {
        for (actor, spec) in &self.config.flow.actors {
            let (ModuleRef::Stem { pin: None, .. } | ModuleRef::Path { pin: None, .. }) =
                &spec.module
            else {
                continue;
            };
            let (what, key) = if self.config.secrets.contains_key(actor) {
                ("has secrets", "env")
            } else if !spec.keys.allow_hosts.is_empty() {
                ("may reach other hosts", "allow_hosts")
            } else {
                continue;
            };
            let message = format!("`{actor}` {what}, and its module is not pinned");
            found.push(
                Diagnostic::warning("W0402", message)
                    .at_some(self.key(actor, "module"), "whoever may write this file may use them")
                    .at_some(self.key(actor, key), "")
                    .help("pin it: `module = { file = \"…\", sha256 = \"…\" }`"),
            );
        }
    }
}

/// How a module is called at the beginning of a sentence.
fn title(module: &ModuleRef) -> String {
    match module {
        ModuleRef::Stem { stem, .. } => format!("the module `{stem}`"),
        ModuleRef::Path { path, .. } => format!("the module `{}`", path.display()),
        ModuleRef::Url { url, .. } => format!("the module `{url}`"),
        ModuleRef::Builtin { name } => format!("the connector `std:{name}`"),
    }
}

fn missing(
    module: &ModuleRef,
    looked_at: Option<&PathBuf>,
    names: &[String],
    place: Option<&Place>,
) -> Diagnostic {
    let problem = |text: String| Diagnostic::error("E0205", text).at_some(place, "not found");
    let names = || names.iter().map(String::as_str);
    match module {
        ModuleRef::Stem { stem, .. } => {
            let mut problem = problem(format!("there is no module `{stem}`"));
            if let Some(path) = looked_at {
                problem = problem.note(format!("looked for `{}`", path.display()));
            }
            let close = similar(stem, names());
            problem.help(match close {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("put the module there, or take the actors of `{stem}` out"),
            })
        }
        ModuleRef::Path { path, .. } => problem(format!("there is no file `{}`", path.display()))
            .help("a path goes from the folder of the file in which it stands; without `/` and `.wasm` it names a file in the modules folder"),
        ModuleRef::Url { url, .. } => problem(format!("there is no module `{url}`")),
        ModuleRef::Builtin { name } => {
            let name = format!("std:{name}");
            let problem = problem(format!("there is no connector `{name}`"));
            problem.help(match similar(&name, names()) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("the connectors are {}", list(names())),
            })
        }
    }
}

/// `a → b → a`.
fn way(cycle: &[&ActorName]) -> String {
    let mut names: Vec<_> = cycle.iter().take(MAX_SHOWN).map(ToString::to_string).collect();
    if cycle.len() > MAX_SHOWN {
        names.push(format!("({} more)", cycle.len() - MAX_SHOWN));
    }
    names.push(cycle[0].to_string());
    names.join(" → ")
}

/// Who hands messages to whom, along wires that wait.
type Graph<'g> = BTreeMap<&'g ActorName, BTreeSet<&'g ActorName>>;

/// Cycles that together go along every edge that is on a cycle, each a shortest one.
///
/// Naming every cycle there is would be of no use to anybody: there can be
/// more of them than messages.
fn cycles<'g>(graph: &Graph<'g>) -> Vec<Vec<&'g ActorName>> {
    // Both ends cut off, so that long chains are not searched from each of their actors.
    let graph = &cut(&reversed(&cut(&reversed(graph))));
    let mut told: BTreeSet<(&ActorName, &ActorName)> = BTreeSet::new();
    let mut cycles = Vec::new();
    for (from, nexts) in graph {
        for to in nexts {
            if told.contains(&(*from, *to)) {
                continue;
            }
            let Some(back) = shortest(graph, to, from) else { continue };
            let mut cycle = vec![*from];
            cycle.extend(back.into_iter().filter(|name| name != from));
            let next = cycle.iter().skip(1).chain([from]);
            told.extend(cycle.iter().copied().zip(next.copied()));
            cycles.push(cycle);
        }
    }
    cycles
}

/// The graph without what no cycle leads to.
fn cut<'g>(graph: &Graph<'g>) -> Graph<'g> {
    let mut incoming: BTreeMap<&ActorName, usize> = BTreeMap::new();
    for (from, nexts) in graph {
        incoming.entry(from).or_default();
        for to in nexts {
            *incoming.entry(to).or_default() += 1;
        }
    }
    let first = incoming.iter().filter(|(_, count)| **count == 0);
    let mut open: Vec<_> = first.map(|(name, _)| *name).collect();
    let mut rest = graph.clone();
    while let Some(name) = open.pop() {
        for next in rest.remove(name).unwrap_or_default() {
            let count = incoming.get_mut(next).expect("every end of an edge was counted");
            *count -= 1;
            if *count == 0 {
                open.push(next);
            }
        }
    }
    rest
}

fn reversed<'g>(graph: &Graph<'g>) -> Graph<'g> {
    let mut reversed = Graph::new();
    for (from, nexts) in graph {
        for to in nexts {
            reversed.entry(*to).or_default().insert(*from);
        }
    }
    reversed
}

/// A shortest way, both ends included.
fn shortest<'g>(
    graph: &Graph<'g>,
    from: &'g ActorName,
    to: &'g ActorName,
) -> Option<Vec<&'g ActorName>> {
    let mut before: BTreeMap<&ActorName, Option<&'g ActorName>> = BTreeMap::from([(from, None)]);
    let mut open = VecDeque::from([from]);
    while let Some(name) = open.pop_front() {
        if name == to {
            let mut way = vec![name];
            while let Some(previous) = before[way[way.len() - 1]] {
                way.push(previous);
            }
            way.reverse();
            return Some(way);
        }
        for next in graph.get(name).into_iter().flatten() {
            if !before.contains_key(next) {
                before.insert(next, Some(name));
                open.push_back(next);
            }
        }
    }
    None
}
