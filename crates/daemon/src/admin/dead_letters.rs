//! Dead letters: those that there are, and their way back or out.
//!
//! Reading them reads the disk, so all of it happens on threads that may block.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::Uri,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::stream;
use reflowd_runtime::{
    ActorName, DeadLetters, Filter, Letters, Loss, Lost, Reason, Replayed, Stock, panic::Boundary,
    unix_millis,
};
use serde::{Deserialize, Serialize};

use super::{
    Admin, InPath, Problem,
    actors::{self, nearest},
    events::{line, ndjson},
    flag, query,
};

/// Hexadecimal digits of a digest.
const DIGEST: usize = 64;

/// The size from which on lines leave, in bytes.
const PIECE: usize = 64 << 10;

/// Which letters, as a query says it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Which {
    /// `7,8,9`.
    numbers: Option<String>,
    /// Only those with greater numbers.
    after: u64,
    actor: Option<ActorName>,
    /// The class of the reason: `trap`.
    reason: Option<String>,
    /// What the digest begins with.
    digest: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<usize>,
    /// Says that every letter is really meant.
    #[serde(deserialize_with = "flag")]
    all: bool,
}

impl Which {
    fn filter(self) -> Result<Filter, Problem> {
        let bad = |what: String| Problem::bad_request("query", "bad query", what);
        let numbers = self.numbers.iter().flat_map(|numbers| numbers.split(','));
        let numbers: BTreeSet<u64> = numbers
            .map(|n| n.trim().parse().map_err(|_| bad(format!("`{n}` is no letter's number"))))
            .collect::<Result<_, _>>()?;
        let at = |text: Option<String>| {
            text.map(|text| moment(&text, unix_millis())).transpose().map_err(bad)
        };
        // Every digest begins with nothing, which is hardly what is meant.
        if self.digest.as_deref() == Some("") {
            return Err(bad("`digest` is empty; give its first digits, or omit it".into()));
        }
        if let Some(digest) = &self.digest
            && (digest.len() > DIGEST || digest.contains(|c: char| !c.is_ascii_hexdigit()))
        {
            return Err(bad(format!(
                "`{digest}` is not the beginning of a digest; give up to {DIGEST} digits, 0 to 9 and a to f"
            )));
        }
        if let Some(reason) = &self.reason
            && !Reason::CLASSES.contains(&reason.as_str())
        {
            let hint = nearest(reason, Reason::CLASSES.iter().copied());
            let hint = hint.map(|like| format!("; did you mean `{like}`?")).unwrap_or_default();
            let known = Reason::CLASSES.join("`, `");
            let detail = format!("there is no reason `{reason}`{hint}; there are `{known}`");
            return Err(bad(detail).with("reasons", &Reason::CLASSES[..]));
        }
        let (since, until) = (at(self.since)?, at(self.until)?);
        if let (Some(since), Some(until)) = (since, until)
            && since >= until
        {
            return Err(bad("`since` is not before `until`, so nothing is in between".into()));
        }
        Ok(Filter {
            numbers,
            after: self.after,
            actor: self.actor,
            class: self.reason,
            digest: self.digest.map(|digest| digest.to_ascii_lowercase()),
            since,
            until,
            limit: self.limit,
        })
    }

    /// The letters of a request that takes them away, which must say which.
    fn chosen(self) -> Result<Filter, Problem> {
        let all = self.all;
        let filter = self.filter()?;
        let chosen = Filter { limit: None, ..filter.clone() };
        if chosen.is_all() && !all {
            let detail = "say which letters: by `numbers`, `actor`, `reason`, `digest`, `since` or `until`, or `all=true` for every one";
            return Err(Problem::bad_request("which", "no letters chosen", detail));
        }
        Ok(filter)
    }
}

/// A moment as somebody writes it, in milliseconds since the Unix epoch: a time such as
/// `2026-01-02T03:04:05Z`, or how long before `now`, such as `10m`.
///
/// # Errors
/// It is neither, and what to write.
pub(crate) fn moment(text: &str, now: u64) -> Result<u64, String> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now.saturating_sub(millis(ago)));
    }
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| {
        format!("`{text}` is no time: write one such as 2026-01-02T03:04:05Z, or how long ago, such as 10m")
    })?;
    Ok(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis))
}

/// `GET /v1/dead-letters?actor=A&reason=CLASS&digest=BEGINNING&since=10m&until=…&after=N&limit=N`.
pub(super) async fn list(State(admin): State<Admin>, uri: Uri) -> Result<Response, Problem> {
    let filter = query::<Which>(&uri)?.filter()?;
    check_actor(&admin, filter.actor.as_ref()).await?;
    let letters = admin.system.dead_letters().clone();
    let letters = blocking(&admin, move || letters.letters(filter)).await?;
    // No thread waits for a caller who reads slowly.
    let pieces = stream::unfold(Some(letters), move |letters| {
        let admin = admin.clone();
        async move {
            let letters = letters?;
            let (piece, rest) = blocking(&admin, || piece(letters)).await.ok()?;
            Some((Ok::<_, Infallible>(piece), rest))
        }
    });
    Ok(ndjson(Body::from_stream(pieces)))
}

/// Refuses the name of an actor that there is not and that has left no letters.
async fn check_actor(admin: &Admin, actor: Option<&ActorName>) -> Result<(), Problem> {
    let Some(actor) = actor.filter(|actor| !actors::is_known(admin, actor)) else { return Ok(()) };
    let one = Filter { actor: Some(actor.clone()), limit: Some(1), ..Filter::default() };
    let letters = admin.system.dead_letters().clone();
    match blocking(admin, move || letters.letters(one).next()).await? {
        Some(_) => Ok(()),
        None => Err(actors::no_actor(admin, actor.as_str())),
    }
}

/// The next lines, and the letters after them if there may be any.
fn piece(mut letters: Letters) -> (Bytes, Option<Letters>) {
    let mut lines = Vec::new();
    while let Some(letter) = letters.next() {
        line(&mut lines, &*letter);
        if lines.len() >= PIECE {
            return (lines.into(), Some(letters));
        }
    }
    (lines.into(), None)
}

/// `GET /v1/dead-letters/{number}`.
pub(super) async fn show(
    State(admin): State<Admin>,
    InPath(number): InPath<u64>,
) -> Result<Response, Problem> {
    let filter = Filter { numbers: [number].into(), ..Filter::default() };
    let letters = admin.system.dead_letters().clone();
    let found = blocking(&admin, move || letters.letters(filter).next()).await?;
    let letter = found.ok_or_else(|| no_letter(number))?;
    Ok(Json(&*letter).into_response())
}

/// What is kept, and what is lost and why.
#[derive(Serialize)]
pub(super) struct Summary {
    #[serde(flatten)]
    stock: Stock,
    lost: Vec<LostFor>,
}

#[derive(Serialize)]
struct LostFor {
    reason: &'static str,
    #[serde(flatten)]
    lost: Lost,
    why: &'static str,
}

/// `GET /v1/dead-letters/stock`.
pub(super) async fn stock(State(admin): State<Admin>) -> Json<Summary> {
    let letters: &DeadLetters = admin.system.dead_letters();
    let losses = letters.lost();
    let lost = Loss::ALL.into_iter().map(|loss| LostFor {
        reason: loss.name(),
        lost: losses.of(loss),
        why: loss.why(),
    });
    let lost = lost.filter(|of| of.lost.letters > 0).collect();
    Json(Summary { stock: letters.stock(), lost })
}

/// `POST /v1/dead-letters/replay?…`, by the same words as the list.
pub(super) async fn replay(
    State(admin): State<Admin>,
    uri: Uri,
) -> Result<Json<Replayed>, Problem> {
    let filter = query::<Which>(&uri)?.chosen()?;
    check_actor(&admin, filter.actor.as_ref()).await?;
    let system = admin.system.clone();
    Ok(Json(blocking(&admin, move || system.replay(filter)).await?))
}

/// What came of a purge.
#[derive(Serialize)]
pub(super) struct Purged {
    purged: u64,
    /// Why some would be back after a restart.
    trouble: Option<String>,
}

/// `DELETE /v1/dead-letters?…`, by the same words as the list.
pub(super) async fn purge(State(admin): State<Admin>, uri: Uri) -> Result<Json<Purged>, Problem> {
    let filter = query::<Which>(&uri)?.chosen()?;
    check_actor(&admin, filter.actor.as_ref()).await?;
    let letters = admin.system.dead_letters().clone();
    let (purged, result) = blocking(&admin, move || letters.purge(filter)).await?;
    let trouble = result.err().map(|error| {
        format!("not all could be marked as gone on disk: {error}: {}; until they are, a restart brings them back", error.source)
    });
    Ok(Json(Purged { purged, trouble }))
}

/// Does what reads or writes the disk, to its end even if the caller hangs up.
async fn blocking<T: Send + 'static>(
    admin: &Admin,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let done = admin.tasks.spawn(Boundary::AdminRequest.aside(work)).await;
    // It breaks within its boundary, and nobody aborts it.
    done.expect("its panics are caught").map_err(|panic| Problem::broke(&panic))
}

fn no_letter(number: u64) -> Problem {
    let detail =
        format!("there is no dead letter {number}; `reflowd dead list` lists those that there are");
    Problem::not_found("no-letter", "no such dead letter", detail).with("number", number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        for (text, expected) in [
            ("10m", Some(2_000_000_000_000 - 600_000)),
            ("1h 30s", Some(2_000_000_000_000 - 3_630_000)),
            ("99years", Some(0)),
            ("1970-01-01T00:00:01Z", Some(1000)),
            ("1970-01-01 00:00:01.5", Some(1500)),
            ("10", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(moment(text, 2_000_000_000_000).ok(), expected, "{text}");
        }
    }
}
