//! What an actor logs: the last lines, and those to come.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use reflowd_runtime::Journal;
use serde::{Deserialize, Serialize};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{
    Admin, InPath, Problem, actors, flag,
    live::{Form, SIGN_OF_LIFE},
    query,
};

/// How much a line matters, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    #[default]
    Trace,
}

impl Level {
    /// The level of that name, as lines have it.
    fn of(name: &str) -> Self {
        match name {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            _ => Self::Trace,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// The number of the last line that the caller knows.
    #[serde(default)]
    after: u64,
    /// At most so many of the lines that there are already, the last ones.
    lines: Option<usize>,
    /// Whether to stay and tell what is logged from now on.
    #[serde(default, deserialize_with = "flag")]
    follow: bool,
    /// Only lines that matter as much as these, or more.
    #[serde(default)]
    level: Level,
}

/// `GET /v1/actors/{actor}/logs?follow=true&level=warn&lines=10`.
pub(super) async fn logs(
    State(admin): State<Admin>,
    InPath(actor): InPath<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Wanted { after, lines, follow, level } = query(&uri)?;
    let actor = actors::running(&admin, &actor)?;
    let journal = Arc::clone(actor.journal());
    let form = Form::wanted(&headers);
    let newest = journal.since(0).last().map_or(0, |line| line.number);
    // A number from before a restart of the daemon says nothing here.
    let after = if after > newest { 0 } else { after };
    let first = lines.map(|lines| {
        let fit = journal.since(after).into_iter().filter(|line| Level::of(line.level) <= level);
        let numbers: Vec<u64> = fit.map(|line| line.number).collect();
        match numbers.len().checked_sub(lines) {
            Some(0) | None => after,
            Some(out) => numbers[out - 1],
        }
    });
    let reader = Reader {
        journal,
        last: first.unwrap_or(after),
        // What had gone before the caller came is not missed.
        began: after > 0,
        once: !follow,
        level,
        form,
        over: false,
        stopping: admin.stopping,
    };
    let pieces = stream::unfold(reader, |mut reader| async move {
        reader.piece().await.map(|piece| (piece, reader))
    });
    Ok(form.answer(pieces))
}

/// Somebody who reads a log.
struct Reader {
    journal: Arc<Journal>,
    /// The number of the last line that was told or passed over.
    last: u64,
    /// Whether a gap after that line is one that the reader should hear of.
    began: bool,
    /// Whether to end with what there is.
    once: bool,
    level: Level,
    form: Form,
    over: bool,
    stopping: CancellationToken,
}

/// Lines that are missing here.
#[derive(Serialize)]
struct Missed {
    missed: u64,
}

impl Reader {
    /// The next lines, or none when there will be no more.
    async fn piece(&mut self) -> Option<Bytes> {
        loop {
            if self.over {
                return None;
            }
            self.over = self.once;
            if !self.once {
                tokio::select! {
                    biased;
                    () = self.stopping.cancelled() => return None,
                    more = time::timeout(SIGN_OF_LIFE, self.journal.more(self.last)) => {
                        if more.is_err() {
                            return Some(self.form.sign_of_life());
                        }
                    }
                }
            }
            let mut out = Vec::new();
            for line in self.journal.since(self.last) {
                let missed = line.number - self.last - 1;
                if missed > 0 && self.began {
                    self.form.put(&mut out, "missed", &Missed { missed });
                }
                self.began = true;
                self.last = line.number;
                if Level::of(line.level) <= self.level {
                    self.form.put(&mut out, "line", &line);
                }
            }
            if !out.is_empty() {
                return Some(out.into());
            }
        }
    }
}
