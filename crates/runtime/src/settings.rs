//! The keys of an actor that apply in place, without a new engine.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::TrialRules;

/// The keys of an actor that apply to it as it runs.
///
/// What needs a new engine is a [`ProgramSpec`](crate::ProgramSpec) instead.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Wall clock of one turn, host calls included.
    pub timeout: Duration,
    /// Messages that the mailbox holds; per inport with [`Trigger::All`].
    pub mailbox: usize,
    /// Bytes that the mailbox holds; one larger message is taken alone.
    pub mailbox_bytes: u64,
    /// What happens to a message that finds the mailbox full.
    pub overflow: Overflow,
    /// What starts a turn.
    pub trigger: Trigger,
    /// When the guest's `__send_output` leaves.
    pub send: SendMode,
    /// Further attempts after a trap.
    pub retries: u32,
    /// Further attempts after a time-out.
    pub retries_timeout: u32,
    /// Bytes of encoded output of one turn.
    pub output: u64,
    /// Bytes of encoded state.
    pub state_size: u64,
    /// Bytes that the host holds for the actor, without mailbox and code.
    pub host_memory: u64,
    /// Whether the state is written to disk.
    pub state: Persistence,
    /// Log lines a second.
    pub log_rate: u32,
    /// Whether the state is part of the context.
    pub context_state: bool,
    /// Whether the envelope is part of the context, as `meta`.
    pub context_meta: bool,
    /// Hops after which a message is taken for a runaway loop.
    pub max_hops: u32,
    /// What a new generation has to prove; nothing, where it is not put on trial.
    pub trial: Option<TrialRules>,
}

/// Bytes that the host holds for an actor that says nothing of it: room for the largest
/// message and state on their way in and out of a turn, and for as much again.
pub const HOST_MEMORY: u64 = 96 << 20;

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            mailbox: 1024,
            mailbox_bytes: 16 << 20,
            overflow: Overflow::Block,
            trigger: Trigger::Any,
            send: SendMode::OnSuccess,
            retries: 2,
            retries_timeout: 0,
            output: 16 << 20,
            state_size: 16 << 20,
            host_memory: HOST_MEMORY,
            state: Persistence::Snapshot,
            log_rate: 100,
            context_state: true,
            context_meta: false,
            max_hops: 10_000,
            trial: Some(TrialRules::default()),
        }
    }
}

/// What happens to a message that finds a mailbox full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// The wire waits, so that pressure travels back to the source.
    #[default]
    Block,
    /// The message is dropped.
    DropNewest,
    /// The oldest message that is not in hand is dropped.
    DropOldest,
}

/// What starts a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// Each message.
    #[default]
    Any,
    /// A message on every required inport that has a wire: a join.
    All,
}

/// When the guest's `__send_output` leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SendMode {
    /// With the turn's outputs, when it has succeeded.
    #[default]
    OnSuccess,
    /// At once: at least once across retries.
    Now,
}

/// Whether an actor's state is written to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Persistence {
    /// Every few seconds and on a graceful stop.
    #[default]
    Snapshot,
    /// Never.
    Memory,
}
