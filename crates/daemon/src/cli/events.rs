//! `reflowd events`.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Args;
use clap_complete::ArgValueCandidates;
use http_body_util::BodyExt as _;
use reflowd_runtime::{printable, printable_lines};
use serde_json::{Map, Value};

use super::{
    Client, Exit, Outcome,
    client::{LineBuffer, escaped},
    complete, print,
    table::Style,
};

/// Which events, and how.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Stay, and tell what happens from now on
    #[arg(long, short)]
    follow: bool,
    /// Only what concerns one actor
    #[arg(long, value_name = "ACTOR", add = ArgValueCandidates::new(complete::actors))]
    actor: Option<String>,
    /// Only events with greater numbers, which `--json` shows
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    after: u64,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// Tells what has happened.
pub(super) async fn events(client: &mut Client, wanted: Events) -> Outcome {
    let only = wanted.actor.map(|actor| format!("&actor={}", escaped(&actor)));
    let (after, follow, only) = (wanted.after, wanted.follow, only.unwrap_or_default());
    let path = format!("/v1/events?after={after}&follow={follow}{only}");
    let mut body = client.stream(&path).await?;
    let mut lines = LineBuffer::default();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.context("the daemon hung up")?.into_data() else { continue };
        lines.add(&piece);
        while let Some(line) = lines.line() {
            let event: Map<String, Value> = serde_json::from_slice(&line)
                .context("the daemon told an event that is no JSON")?;
            let line = if wanted.json {
                format!("{}\n", String::from_utf8_lossy(&line))
            } else {
                text(&event)
            };
            print(&line)?;
        }
    }
    Ok(Exit::Done)
}

/// One line for people: the time, what happened, to whom, and the rest.
fn text(event: &Map<String, Value>) -> String {
    let millis = event.get("time").and_then(Value::as_u64).unwrap_or(0);
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    let word = event.get("event").and_then(Value::as_str).unwrap_or("?");
    let style = match word {
        "started"
        | "swapped"
        | "changed"
        | "resumed"
        | "trial-passed"
        | "dead-letters-on-disk"
        | "state-written"
        | "config-known"
        | "part-recovered" => Style::Good,
        "failed" | "module-refused" | "config-refused" | "config-unknown" | "change-refused"
        | "dead-letters-lost" | "rolled-back" | "source-gap" | "unclean-stop"
        | "state-not-written" | "data-damaged" | "panicked" => Style::Bad,
        "restarted"
        | "waiting"
        | "unreadable"
        | "blocked"
        | "stalled"
        | "removal-held"
        | "file-gone"
        | "folder-unknown"
        | "opinion"
        | "banned"
        | "state-given-back"
        | "no-trial"
        | "dead-letter"
        | "dead-letters-in-memory" => Style::Odd,
        _ => Style::Plain,
    };
    let mut line = format!(
        "{} {}{}",
        humantime::format_rfc3339_millis(time),
        style.paint(word),
        " ".repeat(15usize.saturating_sub(word.len()))
    );
    if let Some(who) = ["actor", "module", "path"].iter().find_map(|key| event.get(*key)?.as_str())
    {
        line.push(' ');
        line.push_str(&printable(who));
    }
    let mut why = None;
    for (key, value) in event {
        match (key.as_str(), value) {
            ("number" | "time" | "event" | "actor" | "module" | "path", _) | (_, Value::Null) => {}
            ("why", Value::String(text)) => why = Some(text),
            ("from" | "digest", Value::String(digest)) => {
                line.push_str(&format!(" {key}={}", digest.chars().take(12).collect::<String>()));
            }
            ("back", Value::Array(back)) => back.iter().for_each(|one| line.push_str(&gone(one))),
            (_, Value::Array(names)) if names.is_empty() => {}
            (_, Value::Array(names)) => {
                let names: Vec<_> = names.iter().filter_map(Value::as_str).collect();
                line.push_str(&format!(" {key}={}", printable(&names.join(","))));
            }
            (_, Value::String(text)) => line.push_str(&format!(" {key}={}", printable(text))),
            (_, value) => line.push_str(&format!(" {key}={}", printable(&value.to_string()))),
        }
    }
    if let Some(why) = why {
        // What a reason says on further lines stays with its event.
        let colon = if line.ends_with(' ') { " " } else { ": " };
        line.push_str(&format!("{colon}{}", printable_lines(why.trim_end(), "    ")));
    }
    line.push('\n');
    line
}

/// One actor of a rollback: from which generation to which, and what that runs.
fn gone(back: &Value) -> String {
    let text = |key: &str| back[key].as_str().unwrap_or("?");
    let digest: String = text("digest").chars().take(12).collect();
    format!(" {}:{}>{}={digest}", text("actor"), back["left"], back["generation"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_event_is_one_readable_line() {
        let swapped = event(
            r#"{"number":7,"time":1700000000123,"event":"swapped","actor":"a","generation":2,
                "from":"0123456789abcdef","digest":"fedcba9876543210","queued":5}"#,
        );
        let line = anstream::adapter::strip_str(&text(&swapped)).to_string();
        assert_eq!(
            line,
            "2023-11-14T22:13:20.123Z swapped         a digest=fedcba987654 from=0123456789ab \
             generation=2 queued=5\n"
        );
    }

    #[test]
    fn a_reason_follows_whom_it_is_about_or_the_event() {
        let refused = event(r#"{"event":"config-refused","why":"one\ntwo"}"#);
        let line = anstream::adapter::strip_str(&text(&refused)).to_string();
        assert!(line.ends_with("Z config-refused  one\n    two\n"), "{line}");
        let failed = event(r#"{"event":"failed","actor":"a","why":"trapped"}"#);
        assert!(
            anstream::adapter::strip_str(&text(&failed)).to_string().ends_with(" a: trapped\n")
        );
    }

    #[test]
    fn what_a_module_says_cannot_pass_for_an_event() {
        let forged = "x\\n2026-11-23T10:34:49Z forged \\u001b[31m\\u202e";
        for key in ["why", "module", "reason", "failure"] {
            let told =
                event(&format!(r#"{{"event":"failed","{key}":"{forged}","actors":["{forged}"]}}"#));
            let line = text(&told).replace(&Style::Bad.paint("failed"), "failed");
            assert!(!line.contains(['\u{1b}', '\u{202e}']), "{line:?}");
            assert!(line.lines().skip(1).all(|line| line.starts_with("    ")), "{line}");
        }
    }

    #[test]
    fn a_rollback_tells_what_each_actor_runs_again() {
        let back = event(
            r#"{"event":"rolled-back","actors":["a"],"lost_turns":2,"why":"`a` trapped",
                "back":[{"actor":"a","left":2,"left_digest":"ff","generation":3,"digest":"0123456789abcdef"}]}"#,
        );
        let line = anstream::adapter::strip_str(&text(&back)).to_string();
        assert!(
            line.ends_with(
                "Z rolled-back     actors=a a:2>3=0123456789ab lost_turns=2: `a` trapped\n"
            ),
            "{line}"
        );
    }
}
