//! `reflowd ps`, `pause`, `resume`, `retry` and `rollback`.

use std::time::Duration;

use clap::Args;
use reflowd_loader::ModuleUrl;
use reflowd_runtime::unix_millis;
use serde::Deserialize;

use super::{
    Client, Exit, Outcome,
    client::{self, escaped},
    note, print,
    table::{Cell, Style, Table},
};
use crate::admin::ActorSummary;

/// How much of a digest people are shown.
const DIGEST_SHOWN: usize = 12;

/// Lists the actors.
pub(super) async fn list(client: &mut Client, json: bool) -> Outcome {
    if json {
        let actors: serde_json::Value = client.get("/v1/actors").await?;
        print(&format!("{actors:#}\n"))?;
        return Ok(Exit::Done);
    }
    let actors: Vec<ActorSummary> = client.get("/v1/actors").await?;
    if actors.is_empty() {
        note("no actors: drop a .wasm file into the modules folder, or configure one");
        return Ok(Exit::Done);
    }
    print(&table(&actors, unix_millis()))?;
    for actor in &actors {
        if let Some(why) = &actor.why {
            note(&format!("{}: {why}", actor.name));
        }
    }
    Ok(Exit::Done)
}

/// Has an actor told `word`.
pub(super) async fn tell(client: &mut Client, actor: &str, word: &str) -> Outcome {
    client.post(&format!("/v1/actors/{}/{word}", escaped(actor)), None).await?;
    Ok(Exit::Done)
}

/// `reflowd rollback`.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The actor's name
    actor: String,
    /// The generation to go back to; the last that passed its trial, where it is not given
    #[arg(long, value_name = "GENERATION")]
    to: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One actor that went back, as the daemon tells it.
#[derive(Deserialize)]
struct GoneBack {
    actor: String,
    left: u64,
    left_digest: String,
    generation: u64,
    digest: String,
}

/// Has an actor run what it ran before.
pub(super) async fn roll_back(client: &mut Client, rollback: Rollback) -> Outcome {
    let Rollback { actor, to, json } = rollback;
    let query = to.map_or_else(String::new, |to| format!("?to={to}"));
    let path = format!("/v1/actors/{}/rollback{query}", escaped(&actor));
    let response = client.post(&path, None).await?;
    if json {
        let answer: serde_json::Value = client::json(response).await?;
        print(&format!("{answer:#}\n"))?;
        return Ok(Exit::Done);
    }
    let back: Vec<GoneBack> = client::json(response).await?;
    let short = |digest: &str| digest.chars().take(DIGEST_SHOWN).collect::<String>();
    for GoneBack { actor, left, left_digest, generation, digest } in &back {
        let (digest, left_digest) = (short(digest), short(left_digest));
        print(&format!(
            "~ {actor}: generation {generation} runs {digest}; generation {left}, {left_digest}, is banned\n"
        ))?;
    }
    Ok(Exit::Done)
}

fn table(actors: &[ActorSummary], now: u64) -> String {
    let mut table = Table::new(&[
        "ACTOR", "STATE", "GEN", "MODULE", "DIGEST", "VERSION", "MAILBOX", "TURNS", "FAILURES",
        "SINCE", "DISK",
    ]);
    for actor in actors {
        let number = |n: Option<u64>| n.map_or_else(none, |n| n.to_string());
        let text = |text: &Option<String>| text.clone().unwrap_or_else(none);
        let digest =
            actor.digest.as_ref().map(|digest| digest.chars().take(DIGEST_SHOWN).collect());
        let mailbox = if actor.source || actor.generation.is_none() {
            none()
        } else {
            format!("{}/{}", actor.queued + actor.in_flight, actor.mailbox)
        };
        let since = actor.since.map_or_else(none, |since| ago(now.saturating_sub(since)));
        let failures = if actor.failures > 0 { Style::Odd } else { Style::Plain };
        table.row([
            actor.name.as_str().into(),
            state(actor),
            number(actor.generation).into(),
            text(&actor.module.as_deref().map(short)).into(),
            text(&digest).into(),
            text(&actor.version).into(),
            mailbox.into(),
            actor.turns.to_string().into(),
            Cell::new(actor.failures.to_string(), failures),
            since.into(),
            disk(actor),
        ]);
    }
    table.text()
}

/// A module as a column shows it: of a URL, its file.
fn short(module: &str) -> String {
    match module.parse::<ModuleUrl>() {
        Ok(url) => url.file_name().to_owned(),
        Err(_) => module.to_owned(),
    }
}

fn none() -> String {
    "-".into()
}

fn style(state: &str) -> Style {
    match state {
        "active" => Style::Good,
        "failed" | "stopped" => Style::Bad,
        _ => Style::Odd,
    }
}

/// What it does, and whether what it runs has yet to prove itself.
fn state(actor: &ActorSummary) -> Cell {
    let style = style(&actor.state);
    if actor.on_trial {
        return Cell::new(format!("{}, on trial", actor.state), style);
    }
    Cell::new(actor.state.as_str(), style)
}

/// Whether what disk asks for is what runs.
fn disk(actor: &ActorSummary) -> Cell {
    if actor.banned {
        return Cell::new("banned", Style::Odd);
    }
    match (actor.in_sync, actor.file_gone) {
        (_, true) => Cell::new("file gone", Style::Odd),
        (Some(true), false) => "same".into(),
        (Some(false), false) => Cell::new("differs", Style::Odd),
        (None, false) => none().into(),
    }
}

/// A span in its largest unit, for a column.
fn ago(millis: u64) -> String {
    let seconds = Duration::from_millis(millis).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_shown_by_its_file() {
        assert_eq!(short("https://example.com/v1/counter.wasm?…"), "counter.wasm");
        assert_eq!(short("counter"), "counter");
        assert_eq!(short("std:interval"), "std:interval");
    }

    #[test]
    fn a_span_is_shown_in_its_largest_unit() {
        assert_eq!(ago(999), "0s");
        assert_eq!(ago(59_999), "59s");
        assert_eq!(ago(60_000), "1m");
        assert_eq!(ago(7_200_000), "2h");
        assert_eq!(ago(172_800_000), "2d");
    }
}
