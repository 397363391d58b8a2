//! `reflowd check`: everything that `run` would refuse, without running.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use futures_util::future::join_all;
use reflowd_hot_reload::{
    ActorSpec, Depth, Kept, Look, ModuleRef, Moment, ScanOptions, Scanner, Sight, Snapshot,
};
use reflowd_loader::{Limits, LoadError, LoadErrorKind, LoadedModule, Loader, ModuleUrl, Source};
use reflowd_runtime::{ActorLog, ActorName, Digest, Metadata, Module as _, ProgramSpec, System};
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Exit, Outcome, print, progress};
use crate::{
    config::{self, Config, Diagnostic, Environment, Lookup, Report, Sources},
    connector::{self, Listeners, Services, Setting},
};

/// Which configuration.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The configuration file; found as `run` finds it where it is not given
    #[arg(value_name = "CONFIG")]
    path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Says everything that is wrong with a configuration.
pub(super) async fn check(wanted: Check, flag: Option<&Path>) -> Outcome {
    let environment = Environment::of_process();
    let flag = wanted.path.as_deref().or(flag);
    let (flow, report) = match config::locate(flag, &environment) {
        Ok(path) => progress::watched("compiling modules", examine(&path, &environment)).await,
        Err(report) => (Size::default(), report),
    };
    if wanted.json {
        print(&format!("{:#}\n", report.to_json()))?;
    } else {
        // Colours are taken out again where they do not belong.
        print(&report.render(true))?;
    }
    if report.errors() > 0 {
        if !wanted.json {
            let errors = count(report.errors(), "error");
            print(&format!("\n{errors}, {}\n", count(report.warnings(), "warning")))?;
        }
        return Ok(Exit::Config);
    }
    if !wanted.json {
        print(&format!("good: {flow}\n"))?;
    }
    Ok(Exit::Done)
}

/// How much there is of what would run.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// Actors of the configuration.
    configured: usize,
    /// Modules that become actors by lying in the folder.
    autostarted: usize,
    wires: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { configured, autostarted, wires } = *self;
        f.write_str(&count(configured + autostarted, "actor"))?;
        match autostarted {
            0 => {}
            1 => f.write_str(" (1 for its file alone)")?,
            n => write!(f, " ({n} for their files alone)")?,
        }
        write!(f, ", {}", count(wires, "wire"))
    }
}

/// A number of things, in words.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

async fn examine(path: &Path, environment: &Environment) -> (Size, Report) {
    let (config, mut report) = config::parse(Sources::read(path, environment), environment);
    let modules = Modules::load(&config).await;
    let flow = config::check_flow(&config, &|module| modules.lookup(module));
    report.extend(flow.into_diagnostics());
    for (name, spec) in &config.flow.actors {
        report.extend(modules.refuses(&config, name, spec).await);
    }
    report.extend(modules.unused.iter().map(unused));
    report.extend(modules.oddities(&config));
    let Config { flow, .. } = &config;
    let (configured, wires) = (flow.actors.len(), flow.wires.len());
    (Size { configured, autostarted: modules.autostarted, wires }, report)
}

/// A module that becomes an actor by lying there, and cannot.
fn unused((path, why): &(PathBuf, String)) -> Diagnostic {
    let message = format!("`{}` would not become an actor", path.display());
    Diagnostic::warning("W0403", message).note(why)
}

/// What became of each module that is asked for by URL.
type Downloaded = BTreeMap<(Digest, ModuleUrl), Result<Arc<LoadedModule>, LoadError>>;

/// The modules that a configuration asks for, and the rest of the folder.
struct Modules {
    /// The watched folder.
    folder: PathBuf,
    /// The stems of the modules there.
    stems: Arc<[String]>,
    found: BTreeMap<PathBuf, Result<Arc<LoadedModule>, String>>,
    downloaded: Downloaded,
    /// How many become actors by lying in the folder.
    autostarted: usize,
    /// Those that no actor asks for, and that cannot become one.
    unused: Vec<(PathBuf, String)>,
    /// What a daemon that starts would see.
    snapshot: Snapshot,
    /// Connectors are made ready with these and run nothing.
    services: Services,
}

impl Modules {
    async fn load(config: &Config) -> Self {
        let limits = Limits { module_size: config.daemon.module_size, ..Limits::default() };
        let loader = Loader::new(limits)
            .with_engine(config.daemon.engine)
            .with_downloads(config.daemon.downloads.clone());
        let folder = config.daemon.modules.clone();
        let snapshot = look(config).await;
        let stems = stems(&snapshot);
        let listeners = Arc::new(Listeners::new(TaskTracker::new(), CancellationToken::new()));
        let mut modules = Self {
            folder,
            stems,
            found: BTreeMap::new(),
            downloaded: BTreeMap::new(),
            autostarted: 0,
            unused: Vec::new(),
            snapshot,
            services: Services { system: System::new(Handle::current()), listeners },
        };
        let asked: BTreeSet<PathBuf> =
            config.flow.actors.values().filter_map(|spec| modules.path(&spec.module)).collect();
        for path in asked {
            // What is not there is missing, and not broken.
            if path.exists() {
                let loaded = loader.load(Source::File(path.clone())).await;
                modules.found.insert(path, loaded.map_err(|error| error.kind.to_string()));
            }
        }
        modules.downloaded = downloads(&loader, config).await;
        if config.daemon.autostart {
            for stem in &*Arc::clone(&modules.stems) {
                let path = modules.folder.join(format!("{stem}.wasm"));
                if modules.found.contains_key(&path) {
                    continue;
                }
                match modules.hinders(config, &loader, stem, &path).await {
                    None => modules.autostarted += 1,
                    Some(why) => modules.unused.push((path, why)),
                }
            }
        }
        modules
    }

    /// Why a module that no actor asks for cannot become one.
    async fn hinders(
        &self,
        config: &Config,
        loader: &Loader,
        stem: &str,
        path: &Path,
    ) -> Option<String> {
        if let Sight::Unknown(trouble) = self.snapshot.stem(stem) {
            return Some(trouble.to_string());
        }
        if let Err(error) = loader.load(Source::File(path.to_owned())).await {
            return Some(error.kind.to_string());
        }
        match stem.parse::<ActorName>() {
            Err(error) => Some(format!("{error}; rename it, or name it as `module` of an actor")),
            Ok(name) if config.flow.actors.contains_key(&name) => {
                Some(format!("the actor `{name}` is configured to run something else"))
            }
            Ok(_) => None,
        }
    }

    /// The file in which a module is; a download and a connector have none.
    fn path(&self, module: &ModuleRef) -> Option<PathBuf> {
        match module {
            ModuleRef::Stem { stem, .. } => Some(self.folder.join(format!("{stem}.wasm"))),
            ModuleRef::Path { path, .. } => Some(path.clone()),
            ModuleRef::Url { .. } | ModuleRef::Builtin { .. } => None,
        }
    }

    fn lookup(&self, module: &ModuleRef) -> Lookup {
        if let ModuleRef::Url { url, sha256 } = module {
            return match self.downloaded.get(&(*sha256, url.clone())) {
                Some(Ok(loaded)) => Lookup::Known(metadata_of(loaded)),
                Some(Err(error)) if is_of_the_way(error) => {
                    Lookup::NotDownloaded { why: error.kind.to_string() }
                }
                Some(Err(error)) => Lookup::Broken { why: error.kind.to_string() },
                // A host that may not be asked is a mistake of its own.
                None => Lookup::Awaited,
            };
        }
        let Some(path) = self.path(module) else { return builtin(module) };
        if let Sight::Unknown(trouble) = self.snapshot.module(module)
            && path.exists()
        {
            return Lookup::Broken { why: trouble.to_string() };
        }
        match self.found.get(&path) {
            Some(Ok(loaded)) => match pinned_otherwise(module, loaded) {
                None => Lookup::Known(metadata_of(loaded)),
                Some(why) => Lookup::Broken { why },
            },
            Some(Err(why)) => Lookup::Broken { why: why.clone() },
            None => Lookup::Missing { looked_at: Some(path), names: Arc::clone(&self.stems) },
        }
    }

    /// A folder that cannot be looked into, and what only looks like a module.
    fn oddities(&self, config: &Config) -> Vec<Diagnostic> {
        let place = config.places.keys.get("daemon.modules");
        let trouble = self.snapshot.modules_trouble.as_ref().map(|trouble| {
            let message = format!("no module is found in `{}`", self.folder.display());
            Diagnostic::warning("W0404", message).at_some(place, "").note(trouble.to_string())
        });
        let odd = self.snapshot.oddities.iter().map(|(path, what)| {
            let message = format!("`{}` is no module: it is {what}", path.display());
            Diagnostic::warning("W0405", message).help("remove it, or give it another name")
        });
        trouble.into_iter().chain(odd).collect()
    }

    /// What an actor's module has against the actor's keys.
    async fn refuses(
        &self,
        config: &Config,
        actor: &ActorName,
        spec: &ActorSpec,
    ) -> Option<Diagnostic> {
        let why = match &spec.module {
            // What is missing of its `env` is told, and it would be told again.
            ModuleRef::Builtin { .. } if config.places.unread.contains(actor) => return None,
            ModuleRef::Builtin { name } => {
                let builtin = connector::find(&format!("std:{name}"))?;
                let (keys, base) = (&spec.keys, config.sources.base());
                let log = ActorLog::new(actor.clone(), 0);
                let setting = Setting { actor, keys, log, base, services: &self.services };
                builtin.prepare(&setting).err()?.to_string()
            }
            ModuleRef::Url { url, sha256 } => {
                let loaded = self.downloaded.get(&(*sha256, url.clone()))?.as_ref().ok()?;
                loaded.prepare(program(actor, spec)).await.err()?.to_string()
            }
            module => {
                let Ok(loaded) = self.found.get(&self.path(module)?)? else { return None };
                loaded.prepare(program(actor, spec)).await.err()?.to_string()
            }
        };
        let message = format!("the actor `{actor}` cannot start");
        Some(config.actor_error(actor, "config", "E0207", message).note(why))
    }
}

/// All modules that are asked for by URL. One slow server makes none of the others later.
async fn downloads(loader: &Loader, config: &Config) -> Downloaded {
    let wanted = config.flow.downloads().into_iter();
    let each = wanted.flat_map(|(sha256, urls)| urls.into_iter().map(move |url| (sha256, url)));
    let each = each.map(async |(sha256, url)| {
        let loaded = download(loader, &url, sha256, &config.daemon.data).await;
        ((sha256, url), loaded)
    });
    join_all(each).await.into_iter().collect()
}

/// A module from the data folder, where it has gone live before, or from its server.
async fn download(
    loader: &Loader,
    url: &ModuleUrl,
    sha256: Digest,
    data: &Path,
) -> Result<Arc<LoadedModule>, LoadError> {
    let source = match Kept::of(data).read(&sha256) {
        Ok(bytes) => Source::Bytes { name: url.to_string(), bytes },
        Err(_) => Source::Url { url: url.clone(), sha256 },
    };
    loader.load(source).await
}

/// Whether the module did not come, so that nothing is known of it.
fn is_of_the_way(error: &LoadError) -> bool {
    matches!(error.kind, LoadErrorKind::Download(_) | LoadErrorKind::DigestMismatch { .. })
}

fn builtin(module: &ModuleRef) -> Lookup {
    let ModuleRef::Builtin { name } = module else {
        unreachable!("every module that is no connector has a path")
    };
    match connector::find(&format!("std:{name}")) {
        Some(builtin) => Lookup::Known(builtin.metadata()),
        None => Lookup::Missing { looked_at: None, names: connector::names() },
    }
}

fn metadata_of(loaded: &LoadedModule) -> Metadata {
    loaded.metadata().clone()
}

/// Why the module is not the one that the actor is pinned to.
fn pinned_otherwise(module: &ModuleRef, loaded: &LoadedModule) -> Option<String> {
    let (ModuleRef::Stem { pin, .. } | ModuleRef::Path { pin, .. }) = module else { return None };
    let (pin, digest) = ((*pin)?, loaded.digest());
    (pin != digest).then(|| format!("its digest is {digest}, and the actor is pinned to {pin}"))
}

fn program(name: &ActorName, spec: &ActorSpec) -> ProgramSpec {
    let keys = spec.keys.clone();
    ProgramSpec {
        actor: name.clone(),
        config: keys.config,
        env: keys.env,
        entry_point: keys.entry_point,
        memory: keys.memory,
        allow_hosts: keys.allow_hosts,
        engine_per: keys.engine_per,
        version: spec.version.clone(),
        log: ActorLog::new(name.clone(), 0),
    }
}

/// One look at the modules, as a daemon takes it that starts.
async fn look(config: &Config) -> Snapshot {
    let look = Look {
        modules: config.daemon.modules.clone(),
        paths: config.flow.paths(),
        ..Look::default()
    };
    let options = ScanOptions {
        // Nobody waits for what is being written.
        quiet: Duration::ZERO,
        module_size: config.daemon.module_size,
        allow_insecure: config.daemon.allow_insecure_dir,
        ..ScanOptions::default()
    };
    let mut scanner = Scanner::new(options);
    let looking = tokio::task::spawn_blocking(move || {
        scanner.scan(&look, &BTreeSet::new(), Depth::Changed, Moment::now())
    });
    looking.await.expect("looking does not panic")
}

/// The stems of the modules that were seen.
fn stems(snapshot: &Snapshot) -> Arc<[String]> {
    let names = snapshot.modules.keys().filter_map(|name| name.to_str());
    let stems = names.filter_map(|name| Some(name.strip_suffix(".wasm")?.to_owned()));
    stems.collect::<BTreeSet<_>>().into_iter().collect()
}
