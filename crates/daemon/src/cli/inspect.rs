//! `reflowd inspect`.

use std::path::PathBuf;

use anyhow::anyhow;
use bytesize::ByteSize;
use clap::Args;
use reflowd_loader::{EngineKind, Export, Inspection, ItemType, Limits, Loader, Source};
use reflowd_runtime::Port;

use super::{Exit, Outcome, Stop, print, table::Style};

/// Which module.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The module's file
    file: PathBuf,
    /// The engine that would run it: `direct` or `extism`
    #[arg(long, default_value_t, value_name = "ENGINE")]
    engine: EngineKind,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tells all that can be told about a module, and whether it would be taken.
pub(super) async fn inspect(wanted: Inspect) -> Outcome {
    let loader = Loader::new(Limits::default()).with_engine(wanted.engine);
    let inspection = loader.inspect(Source::File(wanted.file)).await;
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
        Some(why) => Err(Stop::new(Exit::Data, anyhow!("the module would be refused: {why}"))),
    }
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
