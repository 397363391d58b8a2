//! Waiting for what the flow makes of a message, for whoever sent it over HTTP.

use std::time::Duration;

use axum::http::StatusCode;
use reflowd_runtime::{Answer, Message, MessageId, PortRef, System};
use tokio::{sync::oneshot, time};
use tokio_util::sync::CancellationToken;

use super::Problem;

/// What came of a message.
pub(crate) enum Answered {
    /// The first message that left by the port.
    Message(Message),
    /// Nothing is left of it, and nothing came.
    Nothing,
}

/// Waits for what comes out of `port` for a message that was taken, until the daemon is
/// `stopping`.
///
/// # Errors
/// It became a dead letter, or nothing came in time. It stays accepted.
pub(crate) async fn answered(
    system: &System,
    (id, answer): (MessageId, oneshot::Receiver<Answer>),
    port: &PortRef,
    timeout: Duration,
    stopping: &CancellationToken,
) -> Result<Answered, Problem> {
    /// Whoever asked may hang up; then nobody waits any more.
    struct Waiting<'a>(&'a System, MessageId);
    impl Drop for Waiting<'_> {
        fn drop(&mut self) {
            self.0.forget(self.1);
        }
    }

    let _waiting = Waiting(system, id);
    let with_id = |problem: Problem| problem.with("id", id.to_string());
    let answered = tokio::select! {
        answered = time::timeout(timeout, answer) => answered,
        () = stopping.cancelled() => {
            let why = "the daemon is stopping; the message was accepted";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(with_id(Problem::new(status, "draining", "stopping", why)));
        }
    };
    match answered {
        Ok(Ok(Answer::Message(message))) => Ok(Answered::Message(message)),
        Ok(Ok(Answer::Nothing) | Err(_)) => Ok(Answered::Nothing),
        Ok(Ok(Answer::Died(why))) => {
            let detail = format!("the message, or one that it led to, became a dead letter: {why}");
            let problem = Problem::new(StatusCode::BAD_GATEWAY, "died", "dead letter", detail);
            Err(with_id(problem.with("reason", why)))
        }
        Err(_) => {
            let detail = format!(
                "nothing came out of `{port}` within {}; the message stays accepted",
                humantime::format_duration(timeout)
            );
            let status = StatusCode::GATEWAY_TIMEOUT;
            Err(with_id(Problem::new(status, "timeout", "no answer yet", detail)))
        }
    }
}
