//! `reflowd reload`.

use std::time::Duration;

use clap::Args;
use reflowd_runtime::{printable, printable_lines};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Client, Exit, Outcome, Stop,
    client::{json, text},
    note, print, progress,
    table::Style,
};
use crate::admin::ActorSummary;

/// How often to look whether trials have ended.
const LOOK: Duration = Duration::from_millis(100);

/// How to look at disk.
#[derive(Debug, Args)]
pub(crate) struct Reload {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Try modules again that were refused before
    #[arg(long)]
    force: bool,
    /// Wait for the end of all trials; fail if what is on disk was rolled back
    #[arg(long, conflicts_with = "dry_run")]
    wait_trial: bool,
    /// Do removals that are held back
    #[arg(long)]
    allow_removal: bool,
    /// How long to wait for what it begins; that goes on, and `ps` shows how far it is
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "60s")]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The daemon's report, as it comes over the wire.
#[derive(Debug, Default, Deserialize)]
struct Report {
    added: Vec<String>,
    changed: Vec<String>,
    removed: Vec<String>,
    refused: Vec<Refusal>,
    warnings: Vec<String>,
    held: Option<String>,
    under_way: Vec<Remaining>,
}

/// What goes on after the time to wait for it was over.
#[derive(Debug, Deserialize)]
struct Remaining {
    what: String,
    why: String,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    what: String,
    why: String,
}

/// Has the daemon look at disk, and tells what came of it.
pub(super) async fn reload(client: &mut Client, wanted: Reload) -> Outcome {
    let Reload { dry_run, force, allow_removal, .. } = wanted;
    let timeout = humantime::format_duration(wanted.timeout).to_string().replace(' ', "");
    let path = format!(
        "/v1/reload?dry_run={dry_run}&force={force}&allow_removal={allow_removal}&timeout={timeout}"
    );
    let post = client.post(&path, None);
    let response = progress::watched("looking at disk", post).await?;
    let report: Report = if wanted.json {
        let body = text(response.into_body()).await?;
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        print(&format!("{value:#}\n"))?;
        serde_json::from_value(value).unwrap_or_default()
    } else {
        let report = json(response).await?;
        print(&lines(&report))?;
        report
    };
    if !wanted.json {
        report
            .warnings
            .iter()
            .for_each(|warning| note(&format!("warning: {}", printable_lines(warning, "    "))));
    }
    let clean = report.refused.is_empty() && report.held.is_none();
    let trials = async {
        match wanted.wait_trial {
            true => progress::watched("waiting for trials to end", passes(client)).await,
            false => Ok(true),
        }
    };
    if clean && !report.under_way.is_empty() {
        return Ok(Exit::TryAgain);
    }
    let passed = clean && trials.await?;
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

/// Returns when nothing is on trial: whether all that disk asks for has stayed.
///
/// The daemon may have looked at disk before it was asked to, and rolled back already, so
/// this goes by what is banned and not by what the reload has changed.
async fn passes(client: &mut Client) -> Result<bool, Stop> {
    loop {
        let actors: Vec<ActorSummary> = client.get("/v1/actors").await?;
        // A rollback that is under way is a rollout.
        if actors.iter().any(|actor| actor.on_trial || actor.rolling_out.is_some()) {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let banned: Vec<&str> =
            actors.iter().filter(|actor| actor.banned).map(|actor| actor.name.as_str()).collect();
        if !banned.is_empty() {
            let names = banned.join(", ");
            note(&format!("rolled back from what is on disk: {names}; `reflowd events` says why"));
        }
        return Ok(banned.is_empty());
    }
}

/// The difference, one line for each thing.
fn lines(report: &Report) -> String {
    let mut out = String::new();
    for (sign, style, names) in [
        ("+", Style::Good, &report.added),
        ("~", Style::Odd, &report.changed),
        ("-", Style::Bad, &report.removed),
    ] {
        for name in names {
            out.push_str(&format!("{} {name}\n", style.paint(sign)));
        }
    }
    let held = report.held.as_ref().map(|why| ("held back", why.as_str()));
    let refused = report.refused.iter().map(|r| (r.what.as_str(), r.why.as_str()));
    for (what, why) in refused.chain(held) {
        let (what, why) = (printable(what), printable_lines(why.trim_end(), "    "));
        out.push_str(&format!("{} {what}: {why}\n", Style::Bad.paint("!")));
    }
    for Remaining { what, why } in &report.under_way {
        let (what, why) = (printable(what), printable(why));
        out.push_str(&format!("{} {what}: {why}\n", Style::Odd.paint("…")));
    }
    if out.is_empty() {
        out.push_str("nothing has changed\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_line_for_each_thing() {
        let report = Report {
            added: vec!["a".into()],
            changed: vec!["b".into()],
            removed: vec!["c".into()],
            refused: vec![Refusal { what: "d".into(), why: "one\ntwo".into() }],
            warnings: vec![],
            held: Some("everything would go".into()),
            under_way: Vec::new(),
        };
        let text = anstream::adapter::strip_str(&lines(&report)).to_string();
        assert_eq!(text, "+ a\n~ b\n- c\n! d: one\n    two\n! held back: everything would go\n");
        assert_eq!(lines(&Report::default()), "nothing has changed\n");
    }
}
