//! `reflowd check`: everything that `run` would refuse, without running.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use reflowd_hot_reload::{ActorSpec, ModuleRef};
use reflowd_loader::{Limits, LoadedModule, Loader, Source};
use reflowd_runtime::{ActorLog, ActorName, Metadata, Module as _, ProgramSpec};

use super::{Exit, Outcome, print};
use crate::{
    config::{self, Config, Diagnostic, Environment, Lookup, Report, Sources},
    connector,
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
    let (actors, wires, report) = match config::locate(flag, &environment) {
        Ok(path) => examine(&path, &environment).await,
        Err(report) => (0, 0, report),
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
        print(&format!("good: {}, {}\n", count(actors, "actor"), count(wires, "wire")))?;
    }
    Ok(Exit::Done)
}

/// A number of things, in words.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

async fn examine(path: &Path, environment: &Environment) -> (usize, usize, Report) {
    let (config, mut report) = config::parse(Sources::read(path, environment), environment);
    let modules = Modules::load(&config).await;
    let flow = config::check_flow(&config, &|module| modules.lookup(module));
    report.extend(flow.into_diagnostics());
    for (name, spec) in &config.flow.actors {
        report.extend(modules.refuses(&config, name, spec).await);
    }
    report.extend(modules.unused.iter().map(unused));
    (config.flow.actors.len(), config.flow.wires.len(), report)
}

/// A module that becomes an actor by lying there, and cannot.
fn unused((path, why): &(PathBuf, String)) -> Diagnostic {
    let message = format!("`{}` would not become an actor", path.display());
    Diagnostic::warning("W0403", message).note(why)
}

/// The modules that a configuration asks for, and the rest of the folder.
struct Modules {
    /// The watched folder.
    folder: PathBuf,
    /// The stems of the modules there.
    stems: BTreeSet<String>,
    found: BTreeMap<PathBuf, Result<Arc<LoadedModule>, String>>,
    /// Those that no actor asks for, and that cannot be loaded.
    unused: Vec<(PathBuf, String)>,
}

impl Modules {
    async fn load(config: &Config) -> Self {
        let limits = Limits { module_size: config.daemon.module_size, ..Limits::default() };
        let loader = Loader::new(limits).with_engine(config.daemon.engine);
        let folder = config.daemon.modules.clone();
        let stems = stems(&folder);
        let mut modules = Self { folder, stems, found: BTreeMap::new(), unused: Vec::new() };
        let asked: BTreeSet<PathBuf> =
            config.flow.actors.values().filter_map(|spec| modules.path(&spec.module)).collect();
        for path in asked {
            // What is not there is missing, and not broken.
            if path.exists() {
                let loaded = loader.load(Source::File(path.clone())).await;
                modules.found.insert(path, loaded.map_err(|error| error.kind.to_string()));
            }
        }
        if config.daemon.autostart {
            for stem in modules.stems.clone() {
                let path = modules.folder.join(format!("{stem}.wasm"));
                if !modules.found.contains_key(&path)
                    && let Err(error) = loader.load(Source::File(path.clone())).await
                {
                    modules.unused.push((path, error.kind.to_string()));
                }
            }
        }
        modules
    }

    /// The file in which a module is; a connector has none.
    fn path(&self, module: &ModuleRef) -> Option<PathBuf> {
        match module {
            ModuleRef::Stem { stem, .. } => Some(self.folder.join(format!("{stem}.wasm"))),
            ModuleRef::Path { path, .. } => Some(path.clone()),
            ModuleRef::Builtin { .. } => None,
        }
    }

    fn lookup(&self, module: &ModuleRef) -> Lookup {
        let Some(path) = self.path(module) else { return builtin(module) };
        match self.found.get(&path) {
            Some(Ok(loaded)) => match pinned_otherwise(module, loaded) {
                None => Lookup::Known(metadata_of(loaded)),
                Some(why) => Lookup::Broken { why },
            },
            Some(Err(why)) => Lookup::Broken { why: why.clone() },
            None => {
                let names = self.stems.iter().cloned().collect();
                Lookup::Missing { looked_at: Some(path), names }
            }
        }
    }

    /// What an actor's module has against the actor's keys.
    async fn refuses(
        &self,
        config: &Config,
        name: &ActorName,
        spec: &ActorSpec,
    ) -> Option<Diagnostic> {
        let why = match &spec.module {
            ModuleRef::Builtin { name } => {
                let builtin = connector::find(&format!("std:{name}"))?;
                builtin.prepare(&spec.keys.config, config.sources.base()).err()?.to_string()
            }
            module => {
                let Ok(loaded) = self.found.get(&self.path(module)?)? else { return None };
                loaded.prepare(program(name, spec)).await.err()?.to_string()
            }
        };
        let message = format!("the actor `{name}` cannot start");
        Some(config.actor_error(name, "config", "E0207", message).note(why))
    }
}

fn builtin(module: &ModuleRef) -> Lookup {
    let ModuleRef::Builtin { name } = module else {
        unreachable!("every module that is no connector has a path")
    };
    match connector::find(&format!("std:{name}")) {
        Some(builtin) => Lookup::Known(builtin.metadata()),
        None => {
            let names = connector::Builtin::ALL.map(|builtin| builtin.name().to_owned());
            Lookup::Missing { looked_at: None, names: names.to_vec() }
        }
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

/// The stems of the modules in a folder; none where it cannot be read, which
/// shows in every module that is missing.
fn stems(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path()).filter(|path| path.is_file());
    let modules = paths.filter(|path| path.extension().is_some_and(|e| e == "wasm"));
    modules.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
}
