//! `reflowd tap`: an actor's messages as JSON lines, while it runs.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::Context as _;
use clap::Args;
use clap_complete::ArgValueCandidates;
use http_body_util::BodyExt as _;
use reflowd_runtime::{ActorName, is_wild};
use tokio::time::{self, Instant};

use super::{
    Client, Exit, Outcome, at_least_one,
    client::{LineBuffer, escaped},
    complete, note, print_data,
};

/// What to look at, and for how long.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Tap {
    /// The actor, or one of its ports: `ACTOR` or `ACTOR.PORT`
    #[arg(value_name = "ACTOR[.PORT]", add = ArgValueCandidates::new(complete::actors_and_ports))]
    of: String,
    /// Only what goes in
    #[arg(long, conflicts_with = "out")]
    r#in: bool,
    /// Only what comes out
    #[arg(long)]
    out: bool,
    /// End after so many messages
    #[arg(long, short = 'n', value_name = "COUNT", value_parser = at_least_one)]
    limit: Option<u64>,
    /// End after that time, such as `30s`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    r#for: Option<Duration>,
    /// Print JSON lines, as it does anyway
    #[arg(long, hide = true)]
    json: bool,
}

const EXAMPLES: &str = "\
A line is a message: `direction` is `in` where a turn takes it, and `out` where one puts it out.
The actor never waits for this. What it is too fast for is left out, and counted in a line
of its own: {\"actor\":…,\"skipped\":COUNT}.

Examples:
  reflowd tap counter
  reflowd tap counter.increment --limit 10
  reflowd tap counter --out --for 10s | jq .data";

/// Prints messages until there have been enough.
pub(super) async fn tap(client: &mut Client, wanted: Tap) -> Outcome {
    let Tap { of, r#in, out, limit, r#for: time, json: _ } = wanted;
    let path = match of.split_once('.') {
        Some((actor, port)) => {
            format!("/v1/actors/{}/ports/{}/tap", escaped(actor), escaped(port))
        }
        None => format!("/v1/actors/{}/tap", escaped(&of)),
    };
    let query = match (r#in, out) {
        (true, _) => "?direction=in",
        (_, true) => "?direction=out",
        (false, false) => "",
    };
    let until = time.map(|time| Instant::now() + time);
    let mut body = client.stream(&format!("{path}{query}")).await?;
    let mut lines = LineBuffer::default();
    let mut left = limit;
    let terminal = std::io::stdout().is_terminal();
    loop {
        let frame = match until {
            None => body.frame().await,
            Some(until) => match time::timeout_at(until, body.frame()).await {
                Ok(frame) => frame,
                Err(_) => return Ok(Exit::Done),
            },
        };
        let Some(frame) = frame else {
            note("the daemon has ended the stream");
            return Ok(Exit::NoDaemon);
        };
        let Ok(piece) = frame.context("the daemon hung up")?.into_data() else { continue };
        lines.add(&piece);
        let mut text = Vec::new();
        while let Some(line) = lines.line() {
            // An empty line only says that the connection stands.
            if line.is_empty() {
                continue;
            }
            match terminal {
                true => text.extend_from_slice(tame(&String::from_utf8_lossy(&line)).as_bytes()),
                false => text.extend_from_slice(&line),
            }
            text.push(b'\n');
            let counts = !is_skipped(&line);
            left = left.map(|left| left - u64::from(counts));
            if left == Some(0) {
                print_data(&text)?;
                return Ok(Exit::Done);
            }
        }
        print_data(&text)?;
    }
}

/// Whether a line tells of messages that are missing.
fn is_skipped(line: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Skipped {
        #[serde(rename = "actor")]
        _actor: ActorName,
        #[serde(rename = "skipped")]
        _skipped: u64,
    }
    serde_json::from_slice::<Skipped>(line).is_ok()
}

/// JSON that a terminal shows as it is: characters that would drive it are escaped, which
/// within the strings of JSON means the same.
pub(super) fn tame(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match is_wild(c) {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_drive_the_terminal_and_stays_the_same_value() {
        let wild = "{\"data\":\"\u{9b}31m\u{202e}é\u{7f}\"}";
        let tamed = tame(wild);
        assert_eq!(tamed, "{\"data\":\"\\u009b31m\\u202eé\\u007f\"}");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&tamed), value(wild));
    }

    #[test]
    fn only_a_count_of_what_is_missing_is_no_message() {
        assert!(is_skipped(br#"{"actor":"a","skipped":3}"#));
        assert!(!is_skipped(br#"{"actor":"a","port":"in","data":{"skipped":3}}"#));
    }
}
