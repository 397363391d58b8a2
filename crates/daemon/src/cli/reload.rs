//! `reflowd reload`.

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Client, Exit, Outcome,
    client::{json, text},
    note, print,
    table::Style,
};

/// How to look at disk.
#[derive(Debug, Args)]
pub(crate) struct Reload {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Try modules again that were refused before
    #[arg(long)]
    force: bool,
    /// Do removals that are held back
    #[arg(long)]
    allow_removal: bool,
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
}

#[derive(Debug, Deserialize)]
struct Refusal {
    what: String,
    why: String,
}

/// Has the daemon look at disk, and tells what came of it.
pub(super) async fn reload(client: &mut Client, wanted: Reload) -> Outcome {
    let Reload { dry_run, force, allow_removal, .. } = wanted;
    let path = format!("/v1/reload?dry_run={dry_run}&force={force}&allow_removal={allow_removal}");
    let response = client.post(&path, None).await?;
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
        report.warnings.iter().for_each(|warning| note(&format!("warning: {warning}")));
    }
    let clean = report.refused.is_empty() && report.held.is_none();
    Ok(if clean { Exit::Done } else { Exit::Failed })
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
        let why = why.trim_end().replace('\n', "\n    ");
        out.push_str(&format!("{} {what}: {why}\n", Style::Bad.paint("!")));
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
        };
        let text = anstream::adapter::strip_str(&lines(&report)).to_string();
        assert_eq!(text, "+ a\n~ b\n- c\n! d: one\n    two\n! held back: everything would go\n");
        assert_eq!(lines(&Report::default()), "nothing has changed\n");
    }
}
