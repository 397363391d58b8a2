//! `std:file-in`: the lines of a file, JSON values or text, as messages.
//!
//! The file is read in pieces as the flow takes them, never ahead by more than
//! one piece. What comes after its end is the `mode`: nothing, the file again, or
//! whatever is appended to it. A file that is not there yet is waited for.
//!
//! How far it has come is noted with each line, in one step with putting it out: the file, by
//! its number and what it begins with, and the byte after the line. From there it goes on after
//! an edit of the actor, after a failure, and after a stop of the daemon, with no line lost or
//! doubled. A file that was rotated meanwhile is found beside its old name and read to its end
//! before the one in its place; what is out of reach is told. After a crash it goes on from
//! where it was when states were last written. A file that is repeated always begins anew.

mod follow;
mod take_up;
mod rotation;
mod identity;
mod opened;
mod lines;
mod line_splitter;
mod unreadable;
mod pace;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use reflowd_runtime::{Digest, Emitter, Metadata, Source, SourceError, Type};
use serde::Deserialize;
use serde_json::json;

pub(crate) use line_splitter::BYTE_ORDER_MARK;
use lines::{LineFormat, LineReader};
use pace::Pace;
use unreadable::UnreadableLines;

use super::{Builtin, Prepared, error_port, port, port_name};

/// The lowest rate that can be asked for, in messages a second: one in eleven days.
const LOWEST_RATE: f64 = 1e-6;

/// The highest rate that can be asked for, in messages a second.
const HIGHEST_RATE: f64 = 1e6;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The file; relative to the folder of the configuration.
    path: PathBuf,
    /// Messages a second; as fast as they are taken where it is not set.
    rate: Option<Rate>,
    /// What follows the end of the file.
    #[serde(default)]
    mode: Mode,
    /// What a line is.
    #[serde(default)]
    lines: LineFormat,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`rate` is messages a second: 200, 0.5 or \"200/s\"")]
enum Rate {
    Number(f64),
    Text(String),
}

impl Rate {
    fn per_second(&self) -> Result<f64, String> {
        let rate = match self {
            Self::Number(rate) => Some(*rate),
            Self::Text(text) => text.strip_suffix("/s").unwrap_or(text).trim().parse().ok(),
        };
        rate.filter(|rate| (LOWEST_RATE..=HIGHEST_RATE).contains(rate)).ok_or_else(|| {
            format!("`rate` is messages a second, from {LOWEST_RATE} to {HIGHEST_RATE}")
        })
    }
}

/// What follows the end of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// Nothing: the source is finished.
    #[default]
    Once,
    /// The file again from its first line.
    Repeat,
    /// What is appended to it, or the file that takes its place.
    Follow,
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        component: "std:file-in".into(),
        description: "puts out each line of a file, a JSON value or text, as a message".into(),
        inports: Vec::new(),
        outports: vec![port("out", "a line's value", Type::Any), error_port()],
        config_schema: Some(json!({
            "type": "object",
            "properties": {
                "path": { "type": "string", "description": "the file; relative to the configuration's folder" },
                "rate": {
                    "type": ["number", "string"],
                    "description": "messages a second, such as 200 or \"200/s\"; as fast as they are taken where it is not set",
                },
                "lines": { "enum": ["json", "text"], "default": "json", "description": "what a line is: a JSON value, or a String of any text" },
                "mode": { "enum": ["once", "repeat", "follow"], "default": "once" },
            },
            "required": ["path"],
            "additionalProperties": false,
        })),
        version: None,
    }
}

pub(super) fn prepare(
    builtin: Builtin,
    config: Config,
    base_dir: &Path,
) -> Result<Prepared, String> {
    if config.path.as_os_str().is_empty() {
        return Err("`path` is empty".into());
    }
    refuse_wildcards(&config.path, base_dir)?;
    Ok(Prepared::Source(Arc::new(FileIn {
        digest: builtin.digest(),
        metadata: metadata(),
        path: base_dir.join(config.path),
        rate: config.rate.as_ref().map(Rate::per_second).transpose()?,
        mode: config.mode,
        form: config.lines,
    })))
}

/// # Errors
/// The path is a pattern. Taken by its letters it would be a file that never comes.
fn refuse_wildcards(path: &Path, base_dir: &Path) -> Result<(), String> {
    // The names of folders in which the configuration stands are what they are.
    let common = path.components().zip(base_dir.components()).take_while(|(a, b)| a == b).count();
    let own: PathBuf = path.components().skip(common).collect();
    let own = own.to_string_lossy();
    let encloses = |open: char, close: char| {
        own.split_once(open).is_some_and(|(_, rest)| rest.contains(close))
    };
    if own.contains(['*', '?']) || encloses('[', ']') || encloses('{', '}') {
        return Err(format!(
            "`path` is one file, and `{own}` has wildcards, which are not supported: \
             name the file, or use an actor for each"
        ));
    }
    Ok(())
}

struct FileIn {
    digest: Digest,
    metadata: Metadata,
    path: PathBuf,
    rate: Option<f64>,
    mode: Mode,
    form: LineFormat,
}

impl Source for FileIn {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let mut lines = LineReader {
                path: &self.path,
                form: self.form,
                out,
                out_port: port_name("out"),
                pace: self.rate.map(Pace::new),
                unreadable: UnreadableLines::default(),
            };
            let run = match self.mode {
                Mode::Once => lines.once().await,
                Mode::Repeat => lines.repeat().await,
                Mode::Follow => lines.follow().await,
            };
            run.map_err(|error| SourceError { why: explain(&self.path, &error) })
        })
    }
}

/// What is wrong with a file, and what to do.
fn explain(path: &Path, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => "let the user that runs reflowd read it",
        _ => "see that it can be read",
    };
    format!("cannot read {}: {error}; {advice}", path.display())
}
