//! `reflowd logs`: what an actor's module writes to its log.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use http_body_util::BodyExt as _;
use reflowd_runtime::printable;
use serde::Deserialize;

use super::{
    Client, Exit, Outcome,
    client::{LineBuffer, escaped},
    complete, note, print, print_data,
    table::Style,
};

/// Whose log, and how much of it.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The actor's name
    #[arg(add = ArgValueCandidates::new(complete::actors))]
    actor: String,
    /// End after the lines that there are
    #[arg(long)]
    no_follow: bool,
    /// Only lines of this level and above
    #[arg(long, value_enum, default_value_t)]
    level: Level,
    /// At most so many of the lines that there are already
    #[arg(long, short = 'n', value_name = "COUNT")]
    lines: Option<usize>,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    #[default]
    Trace,
}

/// One line, or a number of lines that are missing.
#[derive(Deserialize)]
#[serde(untagged)]
enum Told {
    Line { time: u64, level: String, text: String },
    Missed { missed: u64 },
}

/// Prints the last lines, and those to come.
pub(super) async fn logs(client: &mut Client, wanted: Logs) -> Outcome {
    let Logs { actor, no_follow, level, lines, json } = wanted;
    let level = level.to_possible_value().expect("no level is hidden").get_name().to_owned();
    let lines = lines.map_or_else(String::new, |lines| format!("&lines={lines}"));
    let path =
        format!("/v1/actors/{}/logs?follow={}&level={level}{lines}", escaped(&actor), !no_follow);
    let mut body = client.stream(&path).await?;
    let mut buffer = LineBuffer::default();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.context("the daemon hung up")?.into_data() else { continue };
        buffer.add(&piece);
        while let Some(line) = buffer.line() {
            if line.is_empty() {
                continue;
            }
            if json {
                print_data(&[&line[..], b"\n"].concat())?;
                continue;
            }
            match serde_json::from_slice(&line).context("the daemon told a line that is no JSON")? {
                Told::Line { time, level, text } => print(&text_of(time, &level, &text))?,
                Told::Missed { missed } => note(&format!("({missed} lines are no longer kept)")),
            }
        }
    }
    Ok(Exit::Done)
}

/// A line for people.
fn text_of(time: u64, level: &str, text: &str) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(time);
    let style = match level {
        "error" => Style::Bad,
        "warn" => Style::Odd,
        "info" => Style::Good,
        _ => Style::Plain,
    };
    let gap = " ".repeat(5usize.saturating_sub(level.len()));
    let (level, text) = (style.paint(&level.to_uppercase()), printable(text));
    format!("{} {level}{gap} {text}\n", humantime::format_rfc3339_millis(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_time_level_and_text() {
        let line = text_of(1_700_000_000_123, "warn", "low \\u{1b}[2J");
        let line = anstream::adapter::strip_str(&line).to_string();
        assert_eq!(line, "2023-11-14T22:13:20.123Z WARN  low \\u{1b}[2J\n");
    }
}
