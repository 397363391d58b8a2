//! `reflowd ps`, `pause`, `resume`, `retry` and `rollback`.

use std::time::{Duration, SystemTime};

use clap::Args;
use clap_complete::ArgValueCandidates;
use reflowd_loader::ModuleUrl;
use reflowd_runtime::{GoneBack, printable, printable_lines, unix_millis};

use super::{
    Client, Exit, Outcome, Stop,
    client::{self, escaped},
    complete, note, print, progress,
    table::{Cell, Style, Table},
};
use crate::admin::{ActorSummary, Told};

/// How much of a digest people are shown.
const DIGEST_SHOWN: usize = 12;

/// Which actors, and how.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only these
    #[arg(value_name = "ACTOR", add = ArgValueCandidates::new(complete::actors))]
    actors: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the actors.
pub(super) async fn list(client: &mut Client, wanted: List) -> Outcome {
    let mut actors: Vec<ActorSummary> = client.get("/v1/actors").await?;
    for name in &wanted.actors {
        if !actors.iter().any(|actor| actor.name == *name) {
            // It knows what may have been meant.
            client.get::<serde_json::Value>(&format!("/v1/actors/{}", escaped(name))).await?;
        }
    }
    if !wanted.actors.is_empty() {
        actors.retain(|actor| wanted.actors.contains(&actor.name));
    }
    if wanted.json {
        let actors = serde_json::to_value(&actors).map_err(anyhow::Error::from)?;
        print(&format!("{actors:#}\n"))?;
        return Ok(Exit::Done);
    }
    if actors.is_empty() {
        // While the daemon starts, there may be none yet.
        match client.stream("/readyz").await {
            Err(Stop { error: Some(why), .. }) => note(&format!("no actors so far: {why}")),
            _ => note("no actors: drop a .wasm file into the modules folder, or configure one"),
        }
        return Ok(Exit::Done);
    }
    print(&table(&actors, unix_millis()))?;
    for actor in &actors {
        let name = &actor.name;
        if let Some(what) = &actor.rolling_out {
            note(&format!("{name}: rolling out: {}", printable(what)));
        }
        match (&actor.why, &actor.held) {
            (Some(why), _) => note(&format!("{name}: {}", printable_lines(why, "    "))),
            (None, Some(why)) => {
                let why = printable_lines(why.trim_end(), "    ");
                note(&format!("{name}: not what disk asks for: {why}"));
            }
            (None, None) => {}
        }
    }
    Ok(Exit::Done)
}

/// What an operator tells an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Pause,
    Resume,
    Retry,
}

/// Has an actor told something, and says what it made of it.
pub(super) async fn tell(client: &mut Client, wanted: super::Actor, word: Word) -> Outcome {
    let route = match word {
        Word::Pause => "pause",
        Word::Resume => "resume",
        Word::Retry => "retry",
    };
    let path = format!("/v1/actors/{}/{route}", escaped(&wanted.actor));
    let told: Told = client::json(client.post(&path, None).await?).await?;
    let text = match wanted.json {
        true => {
            let told = serde_json::to_value(&told).map_err(anyhow::Error::from)?;
            format!("{told:#}\n")
        }
        false => format!("{}\n", made_of(&told, word)),
    };
    print(&text)?;
    Ok(Exit::Done)
}

/// What an actor has made of a word, for people.
fn made_of(told: &Told, word: Word) -> String {
    let Told { actor, was, state, done, why } = told;
    let why = why.as_ref().map(|why| format!(": {}", printable(why))).unwrap_or_default();
    let idle = |state: &str| matches!(state, "resting" | "failed");
    match word {
        Word::Pause if was == "paused" => format!("{actor}: was paused already"),
        Word::Resume if was != "paused" => format!("{actor}: was not paused, and is {state}{why}"),
        Word::Retry if !idle(was) => {
            format!("{actor}: has nothing to try again, and is {state}{why}")
        }
        _ if !done => format!("{actor}: is {state}; it will be done after the turn in hand{why}"),
        Word::Pause => format!("{actor}: paused; it was {was}"),
        Word::Resume => format!("{actor}: goes on, and is {state}{why}"),
        Word::Retry => format!("{actor}: has tried again, and is {state}{why}"),
    }
}

/// `reflowd rollback`.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The actor's name
    #[arg(add = ArgValueCandidates::new(complete::actors))]
    actor: String,
    /// The generation to go back to; the last that passed its trial, where it is not given
    #[arg(long, value_name = "GENERATION")]
    to: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The outcome for one actor, for people. Generations may run the same module with other keys.
fn rolled_back(back: &GoneBack) -> String {
    let GoneBack { actor, left, generation, former, .. } = back;
    let (digest, left_digest) = (back.digest.short(), back.left_digest.short());
    let text = match (digest == left_digest, back.banned) {
        (false, _) => format!(
            "~ {actor}: generation {generation} runs {digest} again, as generation {former} did; generation {left}, {left_digest}, is banned"
        ),
        (true, true) => format!(
            "~ {actor}: generation {generation} runs {digest} with the keys of generation {former} again; generation {left}, the same module with other keys, is banned"
        ),
        (true, false) => format!(
            "~ {actor}: generation {generation} runs {digest} as generation {former} did; generation {left} was the same, and is not banned"
        ),
    };
    let Some(millis) = back.state_from else { return text };
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    let time = humantime::format_rfc3339_seconds(time);
    let lost = match back.lost_turns {
        1 => "1 turn since is lost".to_owned(),
        turns => format!("{turns} turns since are lost"),
    };
    format!("{text}; its state is that of {time}, and {lost}")
}

/// Has an actor run what it ran before.
pub(super) async fn roll_back(client: &mut Client, rollback: Rollback) -> Outcome {
    let Rollback { actor, to, json } = rollback;
    let query = to.map_or_else(String::new, |to| format!("?to={to}"));
    let path = format!("/v1/actors/{}/rollback{query}", escaped(&actor));
    let post = client.post(&path, None);
    let response = progress::watched("going back", post).await?;
    if json {
        let answer: serde_json::Value = client::json(response).await?;
        print(&format!("{answer:#}\n"))?;
        return Ok(Exit::Done);
    }
    let back: Vec<GoneBack> = client::json(response).await?;
    for one in &back {
        print(&format!("{}\n", rolled_back(one)))?;
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
    if actor.rolling_out.is_some() {
        return Cell::new("rolling out", Style::Odd);
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
    use reflowd_runtime::Digest;

    use super::*;

    #[test]
    fn a_download_is_shown_by_its_file() {
        assert_eq!(short("https://example.com/v1/counter.wasm?…"), "counter.wasm");
        assert_eq!(short("counter"), "counter");
        assert_eq!(short("std:interval"), "std:interval");
    }

    #[test]
    fn an_actor_says_what_it_made_of_a_word() {
        let told = |was: &str, state: &str, done, why: Option<&str>| Told {
            actor: "a".into(),
            was: was.into(),
            state: state.into(),
            done,
            why: why.map(ToOwned::to_owned),
        };
        for (word, told, expected) in [
            (Word::Pause, told("active", "paused", true, None), "a: paused; it was active"),
            (Word::Pause, told("paused", "paused", true, None), "a: was paused already"),
            (
                Word::Pause,
                told("active", "active", false, None),
                "a: is active; it will be done after the turn in hand",
            ),
            (Word::Resume, told("paused", "active", true, None), "a: goes on, and is active"),
            (
                Word::Resume,
                told("active", "active", true, None),
                "a: was not paused, and is active",
            ),
            (
                Word::Retry,
                told("active", "active", true, None),
                "a: has nothing to try again, and is active",
            ),
            (
                Word::Retry,
                told("failed", "failed", true, Some("trapped")),
                "a: has tried again, and is failed: trapped",
            ),
        ] {
            assert_eq!(made_of(&told, word), expected);
        }
    }

    #[test]
    fn a_rollback_between_equal_modules_speaks_of_their_keys() {
        let back = |left_digest: u8, banned| GoneBack {
            actor: "a".parse().unwrap(),
            left: 2,
            left_digest: Digest::new([left_digest; 32]),
            generation: 3,
            digest: Digest::new([0x01; 32]),
            former: 1,
            banned,
            lost_turns: 0,
            state_from: None,
        };
        let same = rolled_back(&back(0x01, true));
        assert!(
            same.contains("with the keys of generation 1") && same.contains("banned"),
            "{same}"
        );
        let other = rolled_back(&back(0xfe, true));
        assert!(other.contains("generation 2, fefefefefefe, is banned"), "{other}");
        assert!(rolled_back(&back(0x01, false)).ends_with("is not banned"));
        let given = GoneBack { lost_turns: 7, state_from: Some(86_400_000), ..back(0xff, true) };
        let told = "; its state is that of 1970-01-02T00:00:00Z, and 7 turns since are lost";
        assert!(rolled_back(&given).ends_with(told), "{}", rolled_back(&given));
        let one = GoneBack { lost_turns: 1, ..given };
        assert!(rolled_back(&one).ends_with(", and 1 turn since is lost"), "{}", rolled_back(&one));
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
