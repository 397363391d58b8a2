//! Senders that wait for an answer to their message.
//!
//! A wait counts the deliveries that carry its correlation. When the last one
//! ends without an answer, there will be none, and the sender is told at once
//! instead of waiting for its time-out.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{Message, MessageId, PortRef, dead_letter::Reason};

/// What became of a message that somebody waits for.
#[derive(Debug)]
pub enum Answer {
    /// The first message that left by the port, of the same correlation.
    Message(Message),
    /// The message or one that it led to became a dead letter, for that reason.
    Died(String),
    /// Nothing that it led to is left, and nothing came.
    Nothing,
}

/// All waits of the system.
#[derive(Default)]
pub(crate) struct Waits {
    /// How many there are: turns look here first, since mostly nobody waits.
    active: AtomicUsize,
    by_correlation: Mutex<HashMap<MessageId, Wait>>,
}

struct Wait {
    port: PortRef,
    live: usize,
    answer: oneshot::Sender<Answer>,
}

impl Waits {
    /// Waits for what comes out of `port` in answer to the message `id`, which is
    /// about to be sent.
    pub(crate) fn open(&self, id: MessageId, port: PortRef) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        self.by_correlation.lock().insert(id, Wait { port, live: 1, answer });
        self.active.fetch_add(1, Ordering::AcqRel);
        receiver
    }

    /// Nobody waits for `id` any more.
    pub(crate) fn close(&self, id: MessageId) {
        if self.by_correlation.lock().remove(&id).is_some() {
            self.active.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Another delivery carries the correlation.
    pub(crate) fn more(&self, correlation: MessageId) {
        if self.active.load(Ordering::Acquire) == 0 {
            return;
        }
        if let Some(wait) = self.by_correlation.lock().get_mut(&correlation) {
            wait.live += 1;
        }
    }

    /// A message left by `port`, wired or not.
    pub(crate) fn left_by(
        &self,
        port: impl FnOnce() -> PortRef,
        correlation: MessageId,
        message: &Message,
    ) {
        if self.active.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut waits = self.by_correlation.lock();
        if waits.get(&correlation).is_some_and(|wait| wait.port == port()) {
            self.end(&mut waits, correlation, Answer::Message(message.clone()));
        }
    }

    /// A delivery has been processed, what it led to already counted.
    pub(crate) fn less(&self, correlation: MessageId) {
        if self.active.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut waits = self.by_correlation.lock();
        let Some(wait) = waits.get_mut(&correlation) else { return };
        wait.live -= 1;
        if wait.live == 0 {
            self.end(&mut waits, correlation, Answer::Nothing);
        }
    }

    /// A delivery became a dead letter.
    pub(crate) fn died(&self, correlation: MessageId, reason: &Reason) {
        if self.active.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut waits = self.by_correlation.lock();
        if waits.contains_key(&correlation) {
            self.end(&mut waits, correlation, Answer::Died(reason.to_string()));
        }
    }

    fn end(&self, waits: &mut HashMap<MessageId, Wait>, correlation: MessageId, answer: Answer) {
        if let Some(wait) = waits.remove(&correlation) {
            self.active.fetch_sub(1, Ordering::AcqRel);
            // Whoever waited may have gone; then nobody misses the answer.
            _ = wait.answer.send(answer);
        }
    }
}
