//! The configuration and the connectors, as the reconciler asks for them.

use std::{path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use reflowd_hot_reload::{
    ActorSpec, Blueprint, Checked, ConfigFiles, Draft, Flow, Found, GenerationKeys, Misfit,
    ModuleRef, Texts,
};
use reflowd_runtime::{ActorLog, ActorName, Metadata, Ready};

use crate::{
    config::{self, Config, Environment, Lookup, Report, Sources},
    connector::{self, Prepared, Services, Setting},
};

/// Reads flows from TOML.
pub(crate) struct TomlBlueprint {
    main: PathBuf,
    environment: Environment,
    /// What is in force, against which keys that need a restart are held.
    in_force: Arc<Mutex<Config>>,
    services: Services,
}

impl TomlBlueprint {
    /// The blueprint of a daemon that runs with `config` and gives connectors `services`.
    pub(crate) fn new(config: Config, environment: Environment, services: Services) -> Self {
        let main = config.sources.main().to_owned();
        Self { main, environment, in_force: Arc::new(Mutex::new(config)), services }
    }

    fn parse(&self, texts: &Texts) -> (Config, Report) {
        let texts = texts.iter().map(|(path, text)| (path.as_path(), &**text));
        let sources = Sources::of_texts(&self.main, texts, &self.environment);
        config::parse(sources, &self.environment)
    }

    /// The folder from which relative paths go.
    fn base(&self) -> PathBuf {
        self.main.parent().map(PathBuf::from).unwrap_or_default()
    }
}

impl Blueprint for TomlBlueprint {
    fn files(&self, texts: &Texts) -> ConfigFiles {
        let (config, _) = self.parse(texts);
        ConfigFiles { configs: config.files.into_iter().collect(), includes: config.includes }
    }

    fn draft(&self, texts: &Texts) -> Result<Box<dyn Draft>, String> {
        let (config, mut report) = self.parse(texts);
        let in_force = self.in_force.lock();
        // Of a file that is not TOML nothing is known, so nothing of it has changed.
        if !report.has(config::NOT_TOML) {
            report.extend(config::restart_only(&in_force, &config));
        }
        if report.errors() > 0 {
            return Err(report.brief());
        }
        // Before any actor could say one.
        self.services.system.secrets().add(config.secret_values());
        Ok(Box::new(TomlDraft { config, report, in_force: Arc::clone(&self.in_force) }))
    }

    fn connector(&self, actor: &ActorName, name: &str, spec: &ActorSpec) -> Result<Ready, String> {
        let full = format!("std:{name}");
        let builtin =
            connector::find(&full).ok_or_else(|| connector::unknown(&full).to_string())?;
        let secrets = self.services.system.secrets().clone();
        let log = ActorLog::masked(actor.clone(), spec.settings.log_rate, secrets);
        let (keys, base, services) = (&spec.keys, &self.base(), &self.services);
        let prepared = builtin.prepare(&Setting { actor, keys, log: log.clone(), base, services });
        match prepared.map_err(|error| error.to_string())? {
            Prepared::Source(source) => Ok(Ready::Source(source)),
            Prepared::Sink(program) => {
                let engine = futures_util::FutureExt::now_or_never(program.instantiate())
                    .expect("a connector's engine is made at once")
                    .map_err(|error| error.to_string())?;
                Ok(Ready::Engine { program, engine, version: None, log, module: full })
            }
        }
    }

    fn connector_metadata(&self, name: &str, keys: Option<&GenerationKeys>) -> Option<Metadata> {
        let builtin = connector::find(&format!("std:{name}"))?;
        keys.map_or_else(|| Some(builtin.metadata()), |keys| builtin.metadata_with(&keys.config))
    }
}

/// A configuration without errors of its own.
struct TomlDraft {
    config: Config,
    report: Report,
    in_force: Arc<Mutex<Config>>,
}

impl Draft for TomlDraft {
    fn flow(&self) -> &Flow {
        &self.config.flow
    }

    fn check(&self, lookup: &dyn Fn(&ModuleRef) -> Found) -> Result<Checked, String> {
        let connectors = connector::names();
        let mut report = config::check_flow(&self.config, &|module| match lookup(module) {
            Found::Known(metadata) => Lookup::Known(metadata),
            Found::Missing { looked_at: None, .. } => {
                Lookup::Missing { looked_at: None, names: connectors.clone() }
            }
            Found::Missing { looked_at, names } => Lookup::Missing { looked_at, names },
            Found::Awaited => Lookup::Awaited,
            Found::Broken { why } => Lookup::Broken { why },
        });
        let whole = report.clone();
        let misfits = report.take_misfits();
        if report.errors() > 0 {
            return Err(whole.brief());
        }
        let misfit = |(actors, report): (_, Report)| Misfit { actors, why: report.brief() };
        let warnings = format!("{}{}", self.report.brief(), report.brief());
        let warned = self.report.warnings() + report.warnings() > 0;
        Ok(Checked {
            warnings: warned.then_some(warnings),
            misfits: misfits.into_iter().map(misfit).collect(),
        })
    }

    fn adopted(&self) {
        let mut in_force = self.in_force.lock();
        *in_force = self.config.clone();
    }
}
