//! How messages from outside come to an actor, and answers back.

use std::sync::{Arc, atomic::Ordering};

use thiserror::Error;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::System;
use crate::{
    Actor, ActorName, Answer, Entry, Envelope, Message, MessageId, PortName, PortRef, Trace, Type,
    dead_letter::Reason,
    mailbox::{InLine, PushError},
};

/// A message from outside was not taken; it is handed back.
#[derive(Debug, Error)]
pub enum SendError {
    /// The actor is behind. Wait, shed or fail: the sender knows which is right.
    #[error("the mailbox of `{actor}` is full")]
    Full {
        /// The actor.
        actor: ActorName,
        /// The message.
        message: Message,
    },
    /// All queues of the system together hold as much as they may.
    #[error(
        "the queues hold {used} bytes and `memory_budget` is {limit}; try again later, or see `reflowd ps` for who is behind"
    )]
    OverBudget {
        /// Bytes that the queues hold.
        used: u64,
        /// Bytes that they may hold.
        limit: u64,
        /// The message.
        message: Message,
    },
    /// There is no such actor.
    #[error("there is no actor `{actor}`")]
    NoActor {
        /// The name.
        actor: ActorName,
        /// The message.
        message: Message,
    },
    /// The actor has no such port.
    #[error("the actor `{actor}` has no inport `{port}`; it has {has}")]
    NoPort {
        /// The actor.
        actor: ActorName,
        /// The port.
        port: PortName,
        /// The ports that it has.
        has: String,
        /// The message.
        message: Message,
    },
    /// The message's type can never fit the port.
    #[error("`{actor}.{port}` takes {wants}, and the message is of type {found}")]
    Type {
        /// The actor.
        actor: ActorName,
        /// The port.
        port: PortName,
        /// The declared type.
        wants: Type,
        /// The message's.
        found: Type,
        /// The message.
        message: Message,
    },
    /// The daemon or the actor is stopping.
    #[error("`{actor}` is stopping and takes no more messages")]
    Draining {
        /// The actor.
        actor: ActorName,
        /// The message.
        message: Message,
    },
}

impl System {
    /// Sends a message to an actor from outside.
    ///
    /// # Errors
    /// The message was not taken, and why. A full mailbox is an answer.
    pub fn send(
        &self,
        to: &PortRef,
        message: Message,
        trace: Option<Arc<Trace>>,
    ) -> Result<MessageId, SendError> {
        let (actor, envelope) = self.enter(to, message, trace)?;
        let id = envelope.id;
        self.deliver(&actor, envelope).map(|()| id)
    }

    /// Sends a message to an actor from outside, and waits for room where its mailbox is full.
    ///
    /// Cancel at will: a message is taken or it is not.
    ///
    /// # Errors
    /// The message was not taken, and why: [`SendError::Full`] only where the mailbox's
    /// rule is to drop.
    pub async fn send_waiting(
        &self,
        to: &PortRef,
        message: Message,
        trace: Option<Arc<Trace>>,
    ) -> Result<MessageId, SendError> {
        let mut message = message;
        let (actor, mut envelope) = loop {
            tokio::select! {
                () = self.0.sinks.budget.room() => {}
                () = self.0.kill.cancelled() => {}
            }
            match self.enter(to, message, trace.clone()) {
                // Others that waited too have taken the room.
                Err(SendError::OverBudget { message: back, .. }) => message = back,
                entered => break entered?,
            }
        };
        let id = envelope.id;
        while let Some((back, room)) = self.offer(&actor, envelope)? {
            envelope = back;
            let line = InLine::new(actor.mailbox(), envelope.port.clone(), room);
            tokio::select! {
                () = line.wait() => {}
                () = self.0.kill.cancelled() => {}
            }
            if self.0.closed.load(Ordering::Acquire) || self.0.kill.is_cancelled() {
                let actor = to.actor.clone();
                return Err(SendError::Draining { actor, message: envelope.message });
            }
        }
        Ok(id)
    }

    /// Sends a message and gives a receiver for what comes out of `answer` for it.
    ///
    /// # Errors
    /// The message was not taken, and why.
    pub fn ask(
        &self,
        to: &PortRef,
        message: Message,
        trace: Option<Arc<Trace>>,
        answer: PortRef,
    ) -> Result<(MessageId, oneshot::Receiver<Answer>), SendError> {
        let (actor, envelope) = self.enter(to, message, trace)?;
        let id = envelope.id;
        let receiver = self.0.sinks.waits.open(id, answer);
        match self.deliver(&actor, envelope) {
            Ok(()) => Ok((id, receiver)),
            Err(error) => {
                self.0.sinks.waits.close(id);
                Err(error)
            }
        }
    }

    /// Nobody waits for the answer to `id` any more.
    pub fn forget(&self, id: MessageId) {
        self.0.sinks.waits.close(id);
    }

    pub(super) fn enter(
        &self,
        to: &PortRef,
        message: Message,
        trace: Option<Arc<Trace>>,
    ) -> Result<(Arc<Actor>, Envelope), SendError> {
        let Some(actor) = self.actor(to.actor.as_str()) else {
            return Err(SendError::NoActor { actor: to.actor.clone(), message });
        };
        if actor.leaving() || self.0.closed.load(Ordering::Acquire) {
            return Err(SendError::Draining { actor: to.actor.clone(), message });
        }
        let budget = &self.0.sinks.budget;
        if budget.is_over() {
            let (used, limit) = (budget.used(), budget.limit());
            return Err(SendError::OverBudget { used, limit, message });
        }
        let metadata = actor.metadata();
        match metadata.inport(to.port.as_str()) {
            None => Err(SendError::NoPort {
                actor: to.actor.clone(),
                port: to.port.clone(),
                has: list(metadata.inports.iter().map(|port| port.name.as_str())),
                message,
            }),
            Some(port) if !message.ty().can_fit(port.port_type) => Err(SendError::Type {
                actor: to.actor.clone(),
                port: to.port.clone(),
                wants: port.port_type,
                found: message.ty(),
                message,
            }),
            Some(_) => Ok((actor, Envelope::entering(to.port.clone(), message, trace))),
        }
    }

    fn deliver(&self, actor: &Actor, envelope: Envelope) -> Result<(), SendError> {
        match self.offer(actor, envelope)? {
            None => Ok(()),
            Some((envelope, room)) => {
                actor.mailbox().unblock(&envelope.port, &room);
                Err(SendError::Full { actor: actor.name().clone(), message: envelope.message })
            }
        }
    }

    /// Gives a message to a mailbox. Where that is full and senders are to wait,
    /// the message comes back with what tells when to try again.
    fn offer(
        &self,
        actor: &Actor,
        envelope: Envelope,
    ) -> Result<Option<(Envelope, Arc<Notify>)>, SendError> {
        let name = actor.name().clone();
        let correlation = envelope.correlation;
        match actor.mailbox().push(envelope, None, Entry::Api, Instant::now()) {
            Ok(pushed) => {
                if let Some(dropped) = pushed.dropped {
                    self.0.sinks.dead.dropped(&name, &dropped);
                    self.0.sinks.waits.died(dropped.correlation, &Reason::Overflow);
                }
                Ok(None)
            }
            Err(PushError::Full(envelope, room)) => Ok(Some((envelope, room))),
            Err(PushError::Dropped(envelope)) => {
                self.0.sinks.dead.dropped(&name, &envelope);
                self.0.sinks.waits.died(correlation, &Reason::Overflow);
                Err(SendError::Full { actor: name, message: envelope.message })
            }
            Err(PushError::Closed(envelope)) => {
                Err(SendError::Draining { actor: name, message: envelope.message })
            }
        }
    }
}

/// Names for an error message, or `none`.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
