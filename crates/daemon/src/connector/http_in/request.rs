//! What is done about one request.
//!
//! In this order, so that who has no business here learns nothing and costs little: the
//! head, the token, the route, the rate, the kind of content, the length, the bytes, the
//! message, the wires. All that is refused is a problem document, as it is with the admin API.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::Body as _;
use reflowd_runtime::{Message, MessageError, MessageId, OfferError};
use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::{Door, Route, What, place::Behind};
use crate::{
    admin::{Answered, Problem, Via, answered, guard, is_json, media_type, trace},
    coding::Coding,
    receipt::{Receipt, Receipts, ReceiveError},
    request_head::settle,
};

/// Answers a request.
pub(super) async fn answer(behind: Option<Arc<Behind>>, request: Request<Body>) -> Response<Body> {
    match behind {
        Some(behind) => match take(&behind, request).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        },
        None => unavailable("the source has not begun").into_response(),
    }
}

/// The answer to a request over which the daemon itself broke. Whoever sends requests need not
/// know more of it.
pub(super) fn broke() -> Response<Body> {
    broken("the message may have been taken; the operator is told").into_response()
}

fn broken(why: &str) -> Problem {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Problem::new(status, "broke", "the daemon broke over it", why)
}

async fn take(behind: &Behind, mut request: Request<Body>) -> Result<Response<Body>, Problem> {
    let Behind { door, out, receipts, stopping } = behind;
    settle(&mut request)?;
    door.admit(&request)?;
    let route = door.route(&request)?;
    door.pace(Instant::now())?;
    door.takes(request.headers())?;
    let coding = Coding::of(request.headers())?;
    let trace = trace(request.headers());
    let body = door.body(receipts, coding, request.into_body()).await?;
    let (message, receipt) = (message(route, &body.0)?, body.1);
    let answer = route.wait.as_ref().map(|(port, _)| port.clone());
    let (id, receiver) = out.offer(&route.port, message, trace, answer).map_err(not_taken)?;
    // It is in mailboxes by now, and counted there.
    drop(receipt);
    let (Some(receiver), Some((port, timeout))) = (receiver, &route.wait) else {
        let taken = (StatusCode::ACCEPTED, axum::Json(serde_json::json!({ "id": id })));
        return Ok(taken.into_response());
    };
    let answered = answered(&door.system, (id, receiver), port, *timeout, stopping).await?;
    Ok(match answered {
        Answered::Message(message) => said(id, &message, route.what),
        Answered::Nothing => StatusCode::NO_CONTENT.into_response(),
    })
}

/// What the flow has made of a message.
fn said(id: MessageId, message: &Message, what: What) -> Response<Body> {
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::HeaderName::from_static("reflowd-message-id"), id.to_string()),
    ];
    match what {
        What::Data => (headers, message.data().clone()).into_response(),
        What::Message => (headers, message.encode()).into_response(),
    }
}

impl Door {
    /// Whether the sender may come in at all.
    ///
    /// Where no token is asked for, a page in somebody's browser on this machine could send
    /// as well; its `Host` and `Origin` give it away.
    fn admit(&self, request: &Request<Body>) -> Result<(), Problem> {
        let Some(token) = &self.token else {
            return guard(Via::Tcp, request.headers());
        };
        let shown = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let (scheme, shown) = shown.unwrap_or_default().split_at_checked(7).unwrap_or_default();
        if scheme.eq_ignore_ascii_case(b"bearer ") && token.is(shown.trim_ascii()) {
            return Ok(());
        }
        let why = "show the token as `Authorization: Bearer …`";
        let problem = Problem::new(StatusCode::UNAUTHORIZED, "token", "no entry", why);
        Err(problem.with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
    }

    fn route(&self, request: &Request<Body>) -> Result<&Route, Problem> {
        let (path, method) = (request.uri().path(), request.method());
        let mut there = self.routes.iter().filter(|route| route.path == path);
        if let Some(route) = there.clone().find(|route| route.method == *method) {
            return Ok(route);
        }
        let Some(first) = there.next() else {
            let why = format!("there is nothing at {path}");
            return Err(Problem::not_found("no-route", "no such route", why));
        };
        let mut allowed = first.method.to_string();
        for route in there {
            allowed.push_str(", ");
            allowed.push_str(route.method.as_str());
        }
        let why = format!("{path} takes {allowed}, not {method}");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let problem = Problem::new(status, "no-method", "no such method", why);
        let allowed = HeaderValue::from_str(&allowed).expect("methods are header values");
        Err(problem.with_header(header::ALLOW, allowed))
    }

    fn pace(&self, now: Instant) -> Result<(), Problem> {
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.lock().take(now).map_err(|after| {
            let why = "more requests come than `rate` allows";
            let status = StatusCode::TOO_MANY_REQUESTS;
            let problem = Problem::new(status, "rate", "too many requests", why);
            let after = after.as_secs_f64().ceil().max(1.0).to_string();
            let after = HeaderValue::from_str(&after).expect("digits are a header value");
            problem.with_header(header::RETRY_AFTER, after)
        })
    }

    /// A body must say that it is JSON: a page cannot send that to another host unasked. What
    /// else is JSON all the same, the configuration says.
    fn takes(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let media_type = media_type(headers);
        if is_json(&media_type) || self.content_types.contains(&media_type) {
            return Ok(());
        }
        let more: String = self.content_types.iter().map(|more| format!(", {more}")).collect();
        let why =
            format!("send a body of type application/json, or one that ends with +json{more}");
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Err(Problem::new(status, "content-type", "unknown content type", why))
    }

    async fn body(
        &self,
        receipts: &Receipts,
        coding: Coding,
        body: Body,
    ) -> Result<(Bytes, Receipt), Problem> {
        // What says how large it is need not be read to be refused.
        if body.size_hint().lower() > self.max_body as u64 {
            return Err(ReceiveError::TooLarge(self.max_body).into());
        }
        let read = receipts.read_packed(body, coding, self.max_body).await;
        read.map_err(|error| match error {
            ReceiveError::Broke(_) => broken("the message was not taken; the operator is told"),
            error => error.into(),
        })
    }
}

fn message(route: &Route, bytes: &Bytes) -> Result<Message, Problem> {
    let message = match route.ty {
        Some(ty) => Message::new(ty, bytes.clone()),
        None => Message::from_plain(bytes, bytes),
    };
    message.map_err(|error| {
        let is_json = serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
        let status = match error {
            MessageError::UnknownType(_) | MessageError::Unfit { .. } | MessageError::Fault(_)
                if is_json =>
            {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            _ => StatusCode::BAD_REQUEST,
        };
        Problem::new(status, "bad-message", "bad message", error.to_string())
    })
}

fn not_taken(error: OfferError) -> Problem {
    let why = error.to_string();
    let later = |kind, title| Problem::new(StatusCode::TOO_MANY_REQUESTS, kind, title, &*why);
    match error {
        OfferError::Full(actor) => {
            later("mailbox-full", "the mailbox is full").with("actor", actor.as_str())
        }
        OfferError::OverBudget { .. } => later("over-budget", "the daemon's queues are full"),
        OfferError::Unwired(_) | OfferError::Paused(_) | OfferError::Leaving(_) => {
            unavailable(&why)
        }
    }
}

fn unavailable(why: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "not available", why)
}
