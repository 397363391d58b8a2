//! `reflowd dead list`, `show`, `replay` and `purge`.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use clap_complete::ArgValueCandidates;
use http_body_util::BodyExt as _;
use reflowd_runtime::{ActorName, printable, printable_lines, unix_millis};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{
    Client, Exit, Outcome, Stop, at_least_one,
    client::{LineBuffer, escaped, json, text},
    complete, note, print,
    table::{Cell, Style, Table},
    tap::tame,
};
use crate::admin::moment;

/// How much of a digest people are shown.
const DIGEST_SHOWN: usize = 12;

/// How much of a reason stands in a line of the list, in characters.
const REASON_SHOWN: usize = 60;

/// Lines of the list that are shown as one table.
const LINES_AT_ONCE: usize = 1000;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum Dead {
    /// List them, oldest first
    List(List),
    /// Show one with its message
    Show(Show),
    /// Put them back at the tail of the mailboxes that they were for
    Replay(Choice),
    /// Throw them away
    Purge(Choice),
}

/// Which letters. All that is given must fit.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Only those for this actor
    #[arg(long, add = ArgValueCandidates::new(complete::actors))]
    actor: Option<ActorName>,
    /// Only those of this class of reason, such as `trap` or `timeout`
    #[arg(long, value_name = "CLASS", add = ArgValueCandidates::new(complete::reasons))]
    reason: Option<String>,
    /// Only those of a module whose digest begins so
    #[arg(long, value_name = "BEGINNING")]
    digest: Option<String>,
    /// Only those from then on: `10m` ago, or `2026-01-02T03:04:05Z`
    #[arg(long, value_parser = is_moment, value_name = "TIME")]
    since: Option<String>,
    /// Only those before then
    #[arg(long, value_parser = is_moment, value_name = "TIME")]
    until: Option<String>,
    /// At most so many, the oldest
    #[arg(long, value_name = "COUNT", value_parser = at_least_one)]
    limit: Option<u64>,
}

/// What to list, and how.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    which: Which,
    /// Print JSON lines, with the messages
    #[arg(long)]
    json: bool,
}

/// What to show, and how.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The letter's number
    number: u64,
    /// Print it as one line of JSON
    #[arg(long)]
    json: bool,
}

/// What to take away.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// The letters' numbers
    #[arg(value_name = "NUMBER")]
    numbers: Vec<u64>,
    #[command(flatten)]
    which: Which,
    /// Every letter there is
    #[arg(long, conflicts_with_all = ["numbers", "actor", "reason", "digest", "since", "until"])]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn is_moment(text: &str) -> Result<String, String> {
    moment(text, unix_millis()).map(|_| text.to_owned())
}

/// Does what is to be done with dead letters.
pub(super) async fn dead(client: &mut Client, dead: Dead) -> Outcome {
    match dead {
        Dead::List(list) => self::list(client, list).await,
        Dead::Show(wanted) => show(client, wanted).await,
        Dead::Replay(choice) => replay(client, choice).await,
        Dead::Purge(choice) => purge(client, choice).await,
    }
}

impl Which {
    fn query(&self) -> String {
        let text = |key: &str, value: Option<&str>| {
            value.map(|value| format!("{key}={}&", escaped(value))).unwrap_or_default()
        };
        [
            text("actor", self.actor.as_ref().map(ActorName::as_str)),
            text("reason", self.reason.as_deref()),
            text("digest", self.digest.as_deref()),
            text("since", self.since.as_deref()),
            text("until", self.until.as_deref()),
            text("limit", self.limit.map(|limit| limit.to_string()).as_deref()),
        ]
        .concat()
    }
}

impl Choice {
    /// The letters as a query; which must be said.
    fn query(&self, word: &str) -> Result<String, Stop> {
        let Which { actor, reason, digest, since, until, limit: _ } = &self.which;
        let texts = [reason, digest, since, until];
        let chosen = self.all
            || !self.numbers.is_empty()
            || actor.is_some()
            || texts.iter().any(|text| text.is_some());
        if !chosen {
            let error = anyhow!(
                "say which dead letters to {word}: their numbers, a filter such as --actor or --reason, or --all"
            );
            return Err(Stop::new(Exit::Usage, error));
        }
        let numbers: Vec<_> = self.numbers.iter().map(ToString::to_string).collect();
        let numbers = match numbers.is_empty() {
            true => String::new(),
            false => format!("numbers={}&", escaped(&numbers.join(","))),
        };
        Ok(format!("{}{numbers}all={}", self.which.query(), self.all))
    }
}

/// One letter, as it comes over the wire.
#[derive(Debug, Deserialize)]
struct Letter {
    number: u64,
    time: u64,
    actor: String,
    port: String,
    class: String,
    reason: String,
    digest: Option<String>,
    generation: Option<u64>,
    attempts: u32,
    replayed: bool,
    /// Its message may be nested deeper than a value can be.
    envelope: BTreeMap<String, Box<RawValue>>,
}

async fn list(client: &mut Client, wanted: List) -> Outcome {
    let mut body = client.stream(&format!("/v1/dead-letters?{}", wanted.which.query())).await?;
    let (mut lines, mut letters, mut any) = (LineBuffer::default(), Vec::new(), false);
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.context("the daemon hung up")?.into_data() else { continue };
        lines.add(&piece);
        while let Some(line) = lines.line() {
            any = true;
            if wanted.json {
                print(&format!("{}\n", String::from_utf8_lossy(&line)))?;
                continue;
            }
            // The list does without the messages, which may be large.
            letters.push(Letter { envelope: BTreeMap::new(), ..letter(&line)? });
            if letters.len() == LINES_AT_ONCE {
                print(&table(&letters))?;
                letters.clear();
            }
        }
    }
    if !letters.is_empty() {
        print(&table(&letters))?;
    }
    if !any {
        note("no dead letters");
    }
    let stock: StockAnswer = client.get("/v1/dead-letters/stock").await?;
    stock.words().iter().for_each(|line| note(&printable(line)));
    Ok(Exit::Done)
}

fn letter(line: &[u8]) -> Result<Letter, Stop> {
    let letter = serde_json::from_slice(line).context(
        "the daemon's answer is not what this version expects; are both of one version?",
    )?;
    Ok(letter)
}

fn table(letters: &[Letter]) -> String {
    let mut table =
        Table::new(&["NUMBER", "TIME", "PORT", "CLASS", "TRIES", "DIGEST", "GEN", "REASON"]);
    for letter in letters {
        let none = || "-".to_owned();
        let digest = letter.digest.as_ref().map(|d| d.chars().take(DIGEST_SHOWN).collect());
        let reason = shortened(&letter.reason, REASON_SHOWN);
        let reason = reason.replace(['\n', '\r'], " ");
        table.row([
            letter.number.to_string().into(),
            time(letter.time).into(),
            format!("{}.{}", letter.actor, letter.port).into(),
            Cell::new(letter.class.as_str(), Style::Bad),
            letter.attempts.to_string().into(),
            digest.unwrap_or_else(none).into(),
            letter.generation.map_or_else(none, |n| n.to_string()).into(),
            reason.into(),
        ]);
    }
    table.text()
}

fn time(millis: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    humantime::format_rfc3339_seconds(time).to_string()
}

/// What is kept and lost, as it comes over the wire.
#[derive(Debug, Deserialize)]
struct StockAnswer {
    in_memory: usize,
    bound: Option<u64>,
    trouble: Option<String>,
    lost: Vec<LostAnswer>,
}

#[derive(Debug, Deserialize)]
struct LostAnswer {
    letters: u64,
    bytes: u64,
    why: String,
}

impl StockAnswer {
    /// What people should know beside the list.
    fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for LostAnswer { letters, bytes, why } in &self.lost {
            words.push(format!(
                "lost since the daemon started: {letters} dead letters ({bytes} bytes): {why}"
            ));
        }
        if let Some(trouble) = &self.trouble {
            let n = self.in_memory;
            words.push(format!("{n} are in memory only: {trouble}"));
        } else if self.bound.is_none() {
            words.push("they are in memory only, and end with the daemon".into());
        }
        words
    }
}

async fn show(client: &mut Client, wanted: Show) -> Outcome {
    let body = client.stream(&format!("/v1/dead-letters/{}", wanted.number)).await?;
    let line = text(body).await?;
    if wanted.json {
        print(&String::from_utf8_lossy(&line))?;
        return Ok(Exit::Done);
    }
    let letter = letter(&line)?;
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let value = printable_lines(&value, "             ");
        out.push_str(&format!("{name:<12} {value}\n"));
    };
    row("number", letter.number.to_string());
    row("time", time(letter.time));
    row("port", format!("{}.{}", letter.actor, letter.port));
    row("class", letter.class);
    row("reason", letter.reason.trim_end().to_owned());
    if let (Some(digest), Some(generation)) = (letter.digest, letter.generation) {
        row("ran", format!("{digest}, generation {generation}"));
    }
    row("attempts", letter.attempts.to_string());
    row("replayed", if letter.replayed { "yes" } else { "no" }.into());
    for key in ["id", "correlation", "traceparent", "tracestate"] {
        let value = letter.envelope.get(key);
        if let Some(value) = value.and_then(|value| serde_json::from_str(value.get()).ok()) {
            row(key, value);
        }
    }
    let message = letter.envelope.get("message");
    row("message", message.map_or_else(String::new, |message| tame(message.get())));
    print(&out)?;
    Ok(Exit::Done)
}

/// What came of a replay, as it comes over the wire.
#[derive(Debug, Default, Deserialize)]
struct Replayed {
    replayed: u64,
    stayed: Vec<Stayed>,
    trouble: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Stayed {
    actor: String,
    port: String,
    reason: String,
    why: String,
    letters: u64,
}

async fn replay(client: &mut Client, choice: Choice) -> Outcome {
    let path = format!("/v1/dead-letters/replay?{}", choice.query("replay")?);
    let answer: Value = json(client.post(&path, None).await?).await?;
    if choice.json {
        print(&format!("{answer:#}\n"))?;
    }
    let replayed: Replayed = serde_json::from_value(answer).unwrap_or_default();
    if !choice.json {
        print(&format!("{} replayed\n", replayed.replayed))?;
        replayed.words().iter().for_each(|line| note(&printable(line)));
    }
    let missing = missing(&choice.numbers, replayed.replayed + replayed.stayed());
    missing.iter().for_each(|line| note(line));
    Ok(if missing.is_some() { Exit::Failed } else { replayed.exit() })
}

impl Replayed {
    fn stayed(&self) -> u64 {
        self.stayed.iter().map(|stayed| stayed.letters).sum()
    }

    /// What people should know of those that stayed.
    fn words(&self) -> Vec<String> {
        let stayed = self.stayed.iter().map(|Stayed { actor, port, why, letters, .. }| {
            format!("{letters} for {actor}.{port} stayed: {why}")
        });
        stayed.chain(self.trouble.clone()).collect()
    }

    /// It may be tried again where that can help, and has failed where it cannot.
    fn exit(&self) -> Exit {
        if self.trouble.is_some() || self.stayed.iter().any(|s| s.reason == "no-target") {
            Exit::Failed
        } else if self.stayed.is_empty() {
            Exit::Done
        } else {
            Exit::TryAgain
        }
    }
}

/// The beginning of a text. Where there is more, an ellipsis takes the place of the last character.
fn shortened(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        None => text.to_owned(),
        Some(_) => text.chars().take(characters - 1).chain(['…']).collect(),
    }
}

/// What to say where fewer letters were there than were named.
fn missing(numbers: &[u64], found: u64) -> Option<String> {
    let named: std::collections::BTreeSet<_> = numbers.iter().collect();
    let missing = (named.len() as u64).saturating_sub(found);
    (missing > 0).then(|| {
        let name = if missing == 1 { "names" } else { "name" };
        format!("{missing} of the numbers {name} no dead letter; `reflowd dead list` lists those that there are")
    })
}

/// What came of a purge, as it comes over the wire.
#[derive(Debug, Deserialize)]
struct Purged {
    purged: u64,
    trouble: Option<String>,
}

async fn purge(client: &mut Client, choice: Choice) -> Outcome {
    let path = format!("/v1/dead-letters?{}", choice.query("purge")?);
    let answer: Value = client.delete(&path).await?;
    let Purged { purged, trouble } = serde_json::from_value(answer.clone())
        .context("the daemon's answer is not what this version expects")?;
    match choice.json {
        true => print(&format!("{answer:#}\n"))?,
        false => print(&format!("{purged} purged\n"))?,
    }
    let missing = missing(&choice.numbers, purged);
    let failed = missing.is_some() || trouble.is_some();
    missing.into_iter().chain(trouble).for_each(|line| note(&line));
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stayed(reason: &str) -> Stayed {
        let (actor, port, why) = ("a".into(), "in".into(), "no room".into());
        Stayed { actor, port, reason: reason.into(), why, letters: 2 }
    }

    #[test]
    fn a_reason_that_is_cut_shows_that_it_is() {
        assert_eq!(shortened("näher", 5), "näher");
        assert_eq!(shortened("näher dran", 5), "nähe…");
    }

    #[test]
    fn one_number_names_and_two_numbers_name_no_letter() {
        assert_eq!(missing(&[1, 1], 1), None);
        let told = |numbers: &[u64]| missing(numbers, 0).unwrap_or_default();
        assert!(told(&[1]).starts_with("1 of the numbers names no dead letter"));
        assert!(told(&[1, 2]).starts_with("2 of the numbers name no dead letter"));
    }

    #[test]
    fn the_exit_code_says_whether_another_try_can_help() {
        for (reasons, trouble, exit) in [
            (&[][..], None, Exit::Done),
            (&["full"], None, Exit::TryAgain),
            (&["stopping"], None, Exit::TryAgain),
            (&["no-target"], None, Exit::Failed),
            (&["full", "no-target"], None, Exit::Failed),
            (&[], Some("disk".to_owned()), Exit::Failed),
        ] {
            let stayed = reasons.iter().map(|reason| stayed(reason)).collect();
            let replayed = Replayed { replayed: 1, stayed, trouble };
            assert_eq!(replayed.exit(), exit, "{replayed:?}");
        }
    }

    #[test]
    fn a_message_may_be_nested_as_deep_as_it_likes() {
        let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let line = format!(
            r#"{{"number":7,"time":1,"actor":"a","port":"in","class":"trap","reason":"","digest":null,
                "generation":null,"attempts":3,"replayed":false,"envelope":{{"message":{nested}}}}}"#
        );
        let letter = letter(line.as_bytes()).unwrap();
        assert_eq!(letter.envelope["message"].get(), nested);
    }

    #[test]
    fn a_list_is_a_line_for_each_letter() {
        let letter = letter(
            br#"{"number":7,"time":1700000000123,"actor":"a","port":"in","class":"trap",
                "reason":"trapped:\nunreachable","digest":"0123456789abcdef","generation":2,
                "attempts":3,"replayed":false,"envelope":{}}"#,
        );
        let text = table(&[letter.unwrap()]);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(
            text,
            "NUMBER  TIME                  PORT  CLASS  TRIES  DIGEST        GEN  REASON\n\
             7       2023-11-14T22:13:20Z  a.in  trap   3      0123456789ab  2    trapped: unreachable\n"
        );
    }
}
