//! The configuration: from TOML files to values, with every problem on the way.
//!
//! [`parse`] never gives up. It returns what it could make out together with
//! a [`Report`], so that what depends on more than the files (modules, ports,
//! cycles) is checked in the same run, and the reader sees all of it at once.
//! Whoever acts on a configuration does so only when the report has no error.

mod actor;
mod check;
mod daemon;
mod environment;
mod mask;
mod names;
mod reader;
mod report;
mod restart;
mod schema;
mod sources;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    error::Error as _,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use reflowd_hot_reload::{Flow, Include, IncludeError, Stranger, Template};
use reflowd_runtime::ActorName;
use toml::de::DeTable;

pub(crate) use check::{Lookup, check_flow};
pub(crate) use daemon::{AdminConfig, DaemonConfig};
pub(crate) use environment::Environment;
pub(crate) use report::{Diagnostic, Place, Report};
pub(crate) use restart::restart_only;
pub(crate) use schema::schema;
pub(crate) use sources::Sources;

use reader::{Item, Problems, Table};
use sources::{Included, MAX_INCLUDES};

/// Where the configuration is looked for when nobody says where it is.
const USUAL_PATHS: [&str; 2] = ["config/reflowd.toml", "/etc/reflowd/reflowd.toml"];

/// The code of the problem that a file is no TOML at all.
pub(crate) const NOT_TOML: &str = "E0002";

/// The variable that says where the configuration is.
const PATH_VARIABLE: &str = "REFLOWD_CONFIG";

/// All that an operator has written.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The keys of the daemon itself.
    pub(crate) daemon: DaemonConfig,
    /// Where the daemon is talked to.
    pub(crate) admin: AdminConfig,
    /// Actors and wires.
    pub(crate) flow: Flow,
    /// What an actor gets that no configuration names: `[defaults]`.
    pub(crate) template: Template,
    /// The files that must be there: the main file, and what it includes by name.
    pub(crate) files: BTreeSet<PathBuf>,
    /// The files that count where they are there.
    pub(crate) includes: Vec<Include>,
    /// The files that `env` values come from: when one changes, so does the configuration.
    pub(crate) secret_files: BTreeSet<PathBuf>,
    /// The names of the `env` values that must never be shown, by actor.
    pub(crate) secrets: BTreeMap<ActorName, BTreeSet<String>>,
    /// Where everything stands.
    pub(crate) places: Places,
    /// The texts.
    pub(crate) sources: Arc<Sources>,
}

/// Where actors, wires and keys stand in the files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// The names of actors; those too whose definition has errors.
    pub(crate) actors: BTreeMap<ActorName, Place>,
    /// The values of an actor's keys.
    pub(crate) actor_keys: BTreeMap<(ActorName, String), Place>,
    /// The values of the keys of `[daemon]` and `[admin]`, such as `daemon.modules`.
    pub(crate) keys: BTreeMap<String, Place>,
    /// The two ends of each wire, in the order of the flow's wires.
    pub(crate) wires: Vec<WirePlace>,
    /// Where the ports stand that routes wait for, in the order of the flow's waits.
    pub(crate) waits: Vec<Place>,
    /// Actors of whose `env` a value cannot be read.
    pub(crate) unread: BTreeSet<ActorName>,
    /// Whether some wire could not be read, so that a port may seem to have none.
    pub(crate) unread_wires: bool,
    /// Whether some file could not be read as a whole, so that an actor may seem not to be there.
    pub(crate) incomplete: bool,
}

/// Where the two ends of a wire stand.
#[derive(Clone, Debug)]
pub(crate) struct WirePlace {
    /// The sending port.
    pub(crate) from: Place,
    /// The receiving port.
    pub(crate) to: Place,
}

impl Config {
    /// The values of `env` that must never be shown.
    pub(crate) fn secret_values(&self) -> impl Iterator<Item = &str> {
        self.secrets.iter().flat_map(|(actor, names)| {
            let env = self.flow.actors.get(actor).map(|spec| &spec.keys.env);
            names.iter().filter_map(move |name| Some(env?.get(name)?.as_str()))
        })
    }

    /// An error about one of an actor's keys, shown where the key stands, or else the actor.
    pub(crate) fn actor_error(
        &self,
        actor: &ActorName,
        key: &str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Diagnostic {
        let place = self.places.actor_keys.get(&(actor.clone(), key.to_owned()));
        let place = place.or_else(|| self.places.actors.get(actor));
        Diagnostic::error(code, message).at_some(place, "")
    }
}

/// Finds the configuration file: what `flag` says, then the variable, then the usual places.
///
/// # Errors
/// A report that lists the paths that were tried.
pub(crate) fn locate(flag: Option<&Path>, environment: &Environment) -> Result<PathBuf, Report> {
    // A path that somebody has written down is the one, there or not: going on
    // to another file would run something that nobody asked for.
    if let Some(path) = flag {
        return Ok(environment.absolute(path));
    }
    if let Some(path) = environment.var(PATH_VARIABLE) {
        return Ok(environment.absolute(Path::new(path)));
    }
    let tried = USUAL_PATHS.map(|path| environment.absolute(Path::new(path)));
    if let Some(found) = tried.iter().find(|path| path.exists()) {
        return Ok(found.clone());
    }
    let mut problem = Diagnostic::error("E0001", "there is no configuration file");
    problem = problem.note(format!("`--config` is not given and ${PATH_VARIABLE} is not set"));
    for path in tried {
        problem = problem.note(format!("tried `{}`", path.display()));
    }
    let mut report = Report::default();
    report.extend([
        problem.help("name one with `--config FILE`, or make one: an empty file will do")
    ]);
    Err(report)
}

/// Reads and parses the configuration in `path`.
///
/// # Errors
/// The report, when it has an error; otherwise it comes with the configuration, and has warnings at most.
pub(crate) fn load(path: &Path, environment: &Environment) -> Result<(Config, Report), Report> {
    let (config, report) = parse(Sources::read(path, environment), environment);
    if report.errors() > 0 { Err(report) } else { Ok((config, report)) }
}

/// Makes out as much as it can of the texts, and reports everything that is wrong with them.
pub(crate) fn parse(sources: Sources, environment: &Environment) -> (Config, Report) {
    let sources = Arc::new(sources);
    let problems = Problems::default();
    let mut config = Config {
        daemon: DaemonConfig::defaults(sources.base(), environment),
        admin: AdminConfig::default(),
        flow: Flow::default(),
        template: Template::default(),
        files: BTreeSet::from([sources.main().to_path_buf()]),
        includes: Vec::new(),
        secret_files: BTreeSet::new(),
        secrets: BTreeMap::new(),
        places: Places::default(),
        sources: Arc::clone(&sources),
    };
    let mut parsing = Parsing {
        environment,
        sources: &sources,
        problems: &problems,
        config: &mut config,
        defaults: actor::Defaults::default(),
    };
    for (path, text) in sources.files() {
        let is_main = path == sources.main();
        let file: Arc<Path> = path.into();
        match text {
            Ok(text) => parsing.file(&file, text, is_main),
            Err(error) => {
                parsing.config.places.incomplete = true;
                // What an include names is reported there.
                if is_main {
                    let message = format!("cannot read `{}`: {error}", path.display());
                    problems.add(Diagnostic::error("E0001", message));
                }
            }
        }
    }
    parsing.finish();
    let socket = || daemon::default_socket(&config.daemon.data, environment);
    if config.admin.socket.as_os_str().is_empty() {
        config.admin.socket = socket();
    }
    let mut report = Report::new(sources);
    report.extend(problems.into_vec());
    (config, report)
}

/// One run through the files.
struct Parsing<'p> {
    environment: &'p Environment,
    sources: &'p Sources,
    problems: &'p Problems,
    config: &'p mut Config,
    defaults: actor::Defaults,
}

impl Parsing<'_> {
    fn file(&mut self, file: &Arc<Path>, text: &str, is_main: bool) {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // What was recovered has holes, and problems around them would be made up.
            self.config.places.incomplete = true;
            self.not_toml(file, text, table.get_ref(), &errors);
            return;
        }
        let mut top = Table::top(Arc::clone(file), table.get_ref(), self.problems);
        if is_main {
            self.includes(&mut top);
            if let Some(table) = top.table("daemon") {
                self.remember(&table);
                self.config.daemon.read(table, self.sources.base(), self.environment);
            }
            if let Some(mut table) = top.table("admin") {
                self.remember(&table);
                self.config.admin.tokens = self.tokens(&mut table);
                self.config.admin.read(table, self.sources.base());
            }
            if let Some(table) = top.table("defaults") {
                self.defaults.read(table);
                self.config.template = self.defaults.0.clone();
            }
        } else {
            for key in ["include", "daemon", "admin", "defaults"] {
                if let Some(item) = top.get(key) {
                    self.misplaced(&item);
                }
            }
        }
        self.actors(&mut top);
        self.wires(&mut top);
        top.finish();
    }

    /// Reports what the parser says: one problem a line, since one slip sets the rest of its line wrong.
    fn not_toml(
        &self,
        file: &Arc<Path>,
        text: &str,
        recovered: &DeTable<'_>,
        errors: &[toml::de::Error],
    ) {
        let mut told = None;
        let mut doubled_until = 0;
        let headers = LazyCell::new(|| first_headers(text));
        for error in errors {
            let place = Place { file: Arc::clone(file), span: error.span().unwrap_or_default() };
            let is_double = error.message() == "duplicate key";
            // The keys of a table that is there twice are no further mistakes.
            if is_double && place.span.start < doubled_until {
                continue;
            }
            let line = self.sources.position(&place).0;
            if told.replace(line) == Some(line) {
                continue;
            }
            let name = text.get(place.span.clone()).unwrap_or_default();
            let actors = recovered.get("actors").and_then(|value| value.get_ref().as_table());
            let first = actors.and_then(|actors| actors.get_key_value(name));
            if let (true, Some((first, _))) = (is_double, first) {
                let rest = &text[place.span.end..];
                doubled_until = place.span.end + rest.find("\n[").unwrap_or(rest.len());
                // Of two tables with one name the parser keeps the key of the second.
                let first = headers.get(name).cloned().unwrap_or_else(|| first.span());
                let first = Place { file: Arc::clone(file), span: first };
                let first = Some(&first).filter(|first| first.span != place.span);
                self.problems.add(actor::defined_twice(name, &place, first));
            } else {
                let message = format!("this is not TOML: {}", error.message());
                self.problems.add(Diagnostic::error(NOT_TOML, message).at(&place, ""));
            }
        }
    }

    fn remember(&mut self, table: &Table<'_>) {
        for item in table.items() {
            self.config.places.keys.insert(format!("{}.{}", table.name, item.key), item.place);
        }
    }

    fn misplaced(&self, item: &Item<'_>) {
        let main = self.sources.shown(self.sources.main());
        let message = format!("`{}` stands in an included file", item.key);
        let problem = Diagnostic::error("E0102", message)
            .at(&item.key_place, "only the main file can have this")
            .help(format!("move it to `{main}`"));
        self.problems.add(problem);
    }

    /// Reports patterns that are none, and files that are named and cannot be read.
    fn includes(&mut self, top: &mut Table<'_>) {
        for (number, (item, pattern)) in
            top.strings("include").unwrap_or_default().into_iter().enumerate()
        {
            let add = |message: String, label: &str| {
                self.problems.add(Diagnostic::error("E0003", message).at(&item.place, label));
            };
            if number == MAX_INCLUDES {
                add(format!("there are more than {MAX_INCLUDES} includes"), "one too many");
                break;
            }
            let included = match Included::new(self.sources.base(), pattern) {
                Ok(included) => included,
                Err(error @ IncludeError::Folder(_)) => {
                    add(error.to_string(), "not in a folder's name");
                    continue;
                }
                Err(error @ IncludeError::Pattern { .. }) => {
                    let why = error.source().map(ToString::to_string).unwrap_or_default();
                    add(error.to_string(), &why);
                    continue;
                }
                Err(error @ IncludeError::TooLong(_)) => {
                    add(error.to_string(), "too long");
                    continue;
                }
            };
            for (path, text) in self.sources.files().filter(|(path, _)| included.is_match(path)) {
                if let Err(error) = text {
                    let message = format!("cannot read `{}`: {error}", self.sources.shown(path));
                    add(message, "included here");
                }
            }
            match included {
                Included::File(path) => _ = self.config.files.insert(path),
                Included::Files(include) => self.config.includes.push(include),
            }
        }
    }

    /// The untrusted user who could change a configuration file, if that is checked.
    fn stranger(&self, path: &Path) -> Option<Stranger> {
        let trusted = self.config.daemon.allow_insecure_dir;
        Stranger::to(path).filter(|_| !trusted)
    }

    /// Reports files of the configuration that others could change.
    fn strangers(&mut self) {
        for (path, text) in self.sources.files() {
            if let (Ok(_), Some(stranger)) = (text, self.stranger(path)) {
                let message = format!("`{}` {stranger}", self.sources.shown(path));
                self.problems.add(Diagnostic::error("E0004", message));
            }
        }
    }

    fn finish(&mut self) {
        self.strangers();
        self.former_names();
        self.download_hosts();
        self.doubled_wires();
    }
}

/// Where each name of an actor first stands in the head of a table.
///
/// A head in a string of several lines is found too. That only misplaces a label, and only in
/// a file that has an actor of this name twice.
fn first_headers(text: &str) -> HashMap<&str, Range<usize>> {
    const HEAD: &str = "[actors.";
    let mut first = HashMap::new();
    let mut begin = 0;
    for line in text.split_inclusive('\n') {
        let head = line.trim_start();
        if let Some(rest) = head.strip_prefix(HEAD)
            && let Some((name, _)) = rest.split_once(']')
        {
            let start = begin + (line.len() - head.len()) + HEAD.len();
            first.entry(name).or_insert(start..start + name.len());
        }
        begin += line.len();
    }
    first
}
