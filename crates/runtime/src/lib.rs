//! Actors, mailboxes, turns and wires.
//!
//! The runtime moves messages and owns everything that outlives an engine. It
//! does not know WebAssembly: an actor runs whatever implements [`Engine`].

mod system;
mod actor;
mod source;
mod position;
mod allowance;
mod mailbox;
mod budget;
mod wire;
mod envelope;
mod trace;
mod span;
mod message;
mod strict_json;
mod name;
mod module;
mod epoch;
mod state_index;
mod settings;
mod precondition;
mod supervisor;
mod trial;
mod dead_letter;
mod waits;
mod event;
mod meter;
mod printable;
mod log;
mod secrets;
mod journal;
mod tap;
mod onlookers;
pub mod panic;

pub use actor::{Actor, ActorState, ERROR_PORT, Generation, SetStateError, StateSet, Status};
pub use budget::Budget;
pub use dead_letter::{
    DeadLetter, DeadLetters, Filter, Keeper, Letters, Loss, Losses, Lost, Ran, Reason, Stock,
    StoreError, Unwritten,
};
pub use envelope::{Envelope, MessageId, MessageIdError, unix_millis};
pub use epoch::{Epoch, EpochState};
pub use event::{Event, EventKind, Events, GoneBack};
pub use journal::{Journal, LogLine};
pub use log::ActorLog;
pub use mailbox::{Bounds, Counts, Entry, Mailbox};
pub use message::{EXCERPT, Message, MessageError, Type, WrittenMessage, excerpt};
pub use meter::{Counter, Histogram, HostMemoryMeter, Meters};
pub use module::{
    Context, Digest, DigestError, Effects, Engine, EnginePer, Failure, FailureKind,
    InstantiateError, LeftState, Metadata, MigrateError, Module, Port, PrepareError, Program,
    ProgramSpec, SendNow, Setback, State, StateError, Turn, TurnLimits,
};
pub use name::{ActorName, ActorNameError, PortName, PortNameError, PortRef, PortRefError};
pub use position::Position;
pub use precondition::Precondition;
pub use printable::{is_wild, printable, printable_lines};
pub use secrets::Secrets;
pub use settings::{HOST_MEMORY, Overflow, Persistence, SendMode, Settings, Trigger};
pub use source::{Absence, Emitter, OfferError, Source, SourceError, Taken, UnreadableItem};
pub use span::{HttpRequest, RequestSpan, Span, SpanSink, Spanning, TurnTrace};
pub use strict_json::{
    JsonFault, JsonPlace, MAX_DEPTH, check as check_json, check_within as check_json_within,
};
pub use system::{
    Books, Change, Changed, Halted, Ledger, PutBack, Ready, Remains, Replayed, SendError,
    SpawnError, Start, Stayed, Staying, System, Trialing, WireDef, WireEnds,
};
pub use tap::{Direction, Seen, Sighting, Tap, TapFilter, TooManyTaps};
pub use trace::{Trace, TraceContext, TraceContextError, TraceFlags};
pub use trial::{Fall, GuestErrors, TrialOutcome, TrialRules, TrialView};
pub use waits::Answer;
pub use wire::{Routes, Wire, WireCounts};
