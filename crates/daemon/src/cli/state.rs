//! `reflowd state`: an actor's state, looked at, set, saved to a file and put back.

use std::{
    fs::OpenOptions,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{
    Client, Exit, Outcome, Stop,
    client::{self, escaped, whole},
    complete, note, print, print_data, progress,
};

/// What to do with a state.
#[derive(Debug, Subcommand)]
pub(crate) enum State {
    /// Print it
    Get(Get),
    /// Put another in its place, between two turns
    Set(Set),
    /// Print it with what it belongs to, for `import`
    Export(Export),
    /// Set what `export` has printed
    Import(Import),
    /// Set an empty one, as at an actor's first start
    Reset(Reset),
}

/// Whose state.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The actor's name
    #[arg(add = ArgValueCandidates::new(complete::actors))]
    actor: String,
    /// Print it with the generation that has it
    #[arg(long)]
    json: bool,
}

/// Whose state, and which.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The actor's name
    #[arg(add = ArgValueCandidates::new(complete::actors))]
    actor: String,
    /// A JSON object; `@FILE` for a file's content, `-` for standard input
    value: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Whose state, and where to.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The actor's name
    #[arg(add = ArgValueCandidates::new(complete::actors))]
    actor: String,
    /// The file to write; standard output where it is not given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON, as it does anyway
    #[arg(long, hide = true)]
    json: bool,
}

/// Whose state, and where from.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The actor's name
    #[arg(add = ArgValueCandidates::new(complete::actors))]
    actor: String,
    /// The file; `-` for standard input
    file: PathBuf,
    /// Take the state of another component too
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Whose state.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// The actor's name
    #[arg(add = ArgValueCandidates::new(complete::actors))]
    actor: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A state with what it belongs to, as the daemon tells it and as a file holds it.
#[derive(Serialize, Deserialize)]
struct Document {
    actor: String,
    component: String,
    version: Option<String>,
    digest: String,
    generation: u64,
    #[serde(default)]
    on_trial: bool,
    state: Box<RawValue>,
}

/// What came of a change.
#[derive(Deserialize)]
struct Changed {
    actor: String,
    generation: u64,
    bytes: u64,
    before: u64,
    on_trial: bool,
    written: Option<bool>,
}

/// Does what is to be done with a state.
pub(super) async fn state(client: &mut Client, wanted: State) -> Outcome {
    match wanted {
        State::Get(Get { actor, json }) => {
            if json {
                let shown: Box<RawValue> = client.get(&path(&actor)).await?;
                print_data(format!("{shown}\n").as_bytes())?;
            } else {
                let shown: Document = client.get(&path(&actor)).await?;
                print_data(format!("{}\n", shown.state).as_bytes())?;
            }
            Ok(Exit::Done)
        }
        State::Set(Set { actor, value, json }) => {
            let state = match value.as_str() {
                "-" => standard_input()?,
                value => match value.strip_prefix('@') {
                    Some(file) => read(&PathBuf::from(file))?,
                    None => value.as_bytes().to_vec(),
                },
            };
            set(client, &actor, state, json).await
        }
        State::Export(Export { actor, output, json: _ }) => {
            let shown: Document = client.get(&path(&actor)).await?;
            let mut text = serde_json::to_vec(&shown).map_err(anyhow::Error::from)?;
            text.push(b'\n');
            match output {
                None => print_data(&text)?,
                Some(file) => {
                    let what = || format!("cannot write `{}`", file.display());
                    write_private(&file, &text).with_context(what)?;
                }
            }
            Ok(Exit::Done)
        }
        State::Import(wanted) => import(client, wanted).await,
        State::Reset(Reset { actor, json }) => {
            let what = format!("waiting for the turn in hand of {actor}");
            let answer: Value = progress::watched(&what, client.delete(&path(&actor))).await?;
            tell(&answer, json)
        }
    }
}

async fn import(client: &mut Client, wanted: Import) -> Outcome {
    let Import { actor, file, force, json } = wanted;
    let text = match file.to_str() {
        Some("-") => standard_input()?,
        _ => read(&file)?,
    };
    let from: Document = serde_json::from_slice(&text).map_err(|error| {
        let what = format!("`{}` holds no exported state", file.display());
        Stop::new(Exit::Data, anyhow::Error::new(error).context(what))
    })?;
    let now: Document = client.get(&path(&actor)).await?;
    if now.component != from.component && !force {
        let error = anyhow!(
            "the state is one of `{}`, and `{actor}` runs `{}`; --force sets it all the same",
            from.component,
            now.component
        );
        return Err(Stop::new(Exit::Data, error));
    }
    set(client, &actor, from.state.get().as_bytes().to_vec(), json).await
}

async fn set(client: &mut Client, actor: &str, state: Vec<u8>, json: bool) -> Outcome {
    let what = format!("waiting for the turn in hand of {actor}");
    let path = path(actor);
    let put = client.put(&path, "application/json", whole(state));
    let answer = client::json(progress::watched(&what, put).await?).await?;
    tell(&answer, json)
}

/// Says what came of a change.
fn tell(answer: &Value, json: bool) -> Outcome {
    let changed: Changed = serde_json::from_value(answer.clone())
        .context("the daemon's answer is not what this version expects")?;
    match json {
        true => print(&format!("{answer:#}\n"))?,
        false => {
            let Changed { actor, generation, bytes, before, .. } = &changed;
            print(&format!(
                "{actor}: generation {generation} has a state of {bytes} bytes, in place of {before}\n"
            ))?;
            if changed.on_trial {
                note("it is on trial: a rollback keeps this state, unless it has migrated it");
            }
        }
    }
    if changed.written == Some(false) {
        note("the state is set, and could not be written to disk; the daemon's log says why");
        return Ok(Exit::TryAgain);
    }
    Ok(Exit::Done)
}

fn path(actor: &str) -> String {
    format!("/v1/actors/{}/state", escaped(actor))
}

fn read(file: &PathBuf) -> Result<Vec<u8>, Stop> {
    Ok(std::fs::read(file).with_context(|| format!("cannot read `{}`", file.display()))?)
}

fn standard_input() -> Result<Vec<u8>, Stop> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text).context("cannot read standard input")?;
    Ok(text)
}
/// Writes a file that only its owner may read: a state may hold what is nobody else's.
fn write_private(file: &Path, text: &[u8]) -> io::Result<()> {
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(true).mode(0o600);
    open.open(file)?.write_all(text)
}
