//! `reflowd inspect`.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use bytesize::ByteSize;
use clap::Args;
use clap_complete::ArgValueCandidates;
use reflowd_loader::{
    DownloadError, DownloadRules, EngineKind, Export, Inspection, ItemType, Limits, LoadErrorKind,
    Loader, ModuleUrl, Source,
};
use reflowd_runtime::{Digest, Port, printable, printable_lines};

use super::{Exit, Outcome, Stop, complete, print, table::Style};
use crate::config::{self, Environment, Sources};

/// Which module.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The module's file, or a URL that it is downloaded from
    #[arg(value_name = "FILE|URL")]
    module: PathBuf,
    /// The digest that it must have; otherwise nothing else is told of it
    #[arg(long, value_name = "DIGEST")]
    sha256: Option<Digest>,
    /// The engine that would run it: `direct` or `extism`
    #[arg(long, default_value_t, value_name = "ENGINE", add = ArgValueCandidates::new(complete::engines))]
    engine: EngineKind,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tells all that can be told about a module, and whether it would be taken.
pub(super) async fn inspect(wanted: Inspect, config: Option<&Path>) -> Outcome {
    let loader = Loader::new(Limits::default()).with_engine(wanted.engine);
    let inspection = match wanted.module.to_str().filter(|text| text.contains("://")) {
        Some(url) => {
            let url = url.parse::<ModuleUrl>().map_err(|error| Stop::new(Exit::Usage, error))?;
            let loader = loader.with_downloads(rules(config));
            let bytes = loader.download(&url, wanted.sha256.as_ref()).await;
            let bytes = bytes.map_err(|error| {
                let is_wrong = matches!(
                    error.kind,
                    LoadErrorKind::DigestMismatch { .. }
                        | LoadErrorKind::Download(DownloadError::TooLarge { .. })
                );
                Stop::new(if is_wrong { Exit::Data } else { Exit::Failed }, error)
            })?;
            loader.inspect(Source::Bytes { name: url.to_string(), bytes }).await
        }
        None if wanted.module.to_str().is_some_and(|text| text.starts_with("std:")) => {
            let name = wanted.module.display();
            let why = anyhow!(
                "`{name}` is a connector, built into reflowd; this looks at files and URLs"
            );
            return Err(Stop::new(Exit::Usage, why));
        }
        None => {
            let inspection = loader.inspect(Source::File(wanted.module)).await;
            if let (Some(wanted), Some(found)) = (wanted.sha256, inspection.digest)
                && wanted != found
            {
                let module = inspection.module;
                let why = anyhow!("{module}: its digest is {found}, and {wanted} was asked for");
                return Err(Stop::new(Exit::Data, why));
            }
            inspection
        }
    };
    if wanted.json {
        let value = serde_json::to_value(&inspection).map_err(anyhow::Error::from)?;
        print(&format!("{value:#}\n"))?;
    } else if inspection.size.is_some() {
        print(&text(&inspection))?;
    }
    let takes_turns = |export: &Export| export.name == "process";
    match inspection.problem {
        None if inspection.exports.iter().any(takes_turns) => Ok(Exit::Done),
        None => Err(Stop::new(
            Exit::Data,
            anyhow!(
                "the module exports no `process`; only an actor that names another export as `entry_point` can run it"
            ),
        )),
        // Nothing is known of what could not be read: that is not the module's fault.
        Some(why) if inspection.size.is_none() => {
            Err(Stop::new(Exit::Failed, anyhow!("{}: {why}", inspection.module)))
        }
        Some(why) => {
            let why = printable_lines(&why, "");
            Err(Stop::new(Exit::Data, anyhow!("the module would be refused: {why}")))
        }
    }
}

/// What the configuration that is found lets downloads do, as far as it can be read.
fn rules(config: Option<&Path>) -> DownloadRules {
    let environment = Environment::of_process();
    let Ok(path) = config::locate(config, &environment) else { return DownloadRules::default() };
    let (config, _) = config::parse(Sources::read(&path, &environment), &environment);
    config.daemon.downloads
}

/// The module for people.
fn text(inspection: &Inspection) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    let mut line = |head, text: String| lines.push((head, text));
    line("module", inspection.module.clone());
    if let Some(digest) = inspection.digest {
        line("digest", digest.to_string());
    }
    if let Some(size) = inspection.size {
        line("size", ByteSize(size).to_string());
    }
    if let Some(metadata) = &inspection.metadata {
        line("component", metadata.component.clone());
        if !metadata.description.is_empty() {
            line("about", metadata.description.clone());
        }
    }
    if let Some(version) = &inspection.version {
        line("version", version.clone());
    }
    if let Some(memory) = &inspection.memory {
        let max = memory.max.map_or_else(|| "no bound".into(), |max| ByteSize(max).to_string());
        line("memory", format!("{} to {max}", ByteSize(memory.min)));
    }
    if inspection.wasi {
        line("wasi", "preview 1".into());
    }
    if inspection.start {
        line("start", "runs code as soon as it is instantiated".into());
    }
    if let Some(metadata) = &inspection.metadata {
        metadata.inports.iter().for_each(|p| line("inport", port(p)));
        metadata.outports.iter().for_each(|p| line("outport", port(p)));
        if metadata.config_schema.is_some() {
            line("config", "checked by a schema".into());
        }
    }
    for export in &inspection.exports {
        line("export", format!("{}{}", export.name, item(&export.ty)));
    }
    for import in &inspection.imports {
        line("import", format!("{}/{}{}", import.module, import.name, item(&import.ty)));
    }
    let mut out = String::new();
    let mut last = "";
    for (head, text) in lines {
        // A head stands once before all that it is the head of.
        let shown = if head == last { "" } else { head };
        last = head;
        let gap = " ".repeat(11 - shown.len());
        // All of it is the module's own words.
        let text = printable(&text);
        out.push_str(&format!("{}{gap}{text}\n", Style::Head.paint(shown)));
    }
    out
}

fn port(port: &Port) -> String {
    let required = if port.required { ", required" } else { "" };
    let about = match port.description.as_str() {
        "" => String::new(),
        about => format!(": {about}"),
    };
    format!("{} ({}{required}){about}", port.name, port.port_type)
}

fn item(ty: &ItemType) -> String {
    match ty {
        ItemType::Function(signature) => format!(" {signature}"),
        ItemType::Other(kind) => format!(" ({kind})"),
    }
}
