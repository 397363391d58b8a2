//! From a change on disk to swaps of running actors.
//!
//! A look at the disk gives a [`Snapshot`]; comparing it with what runs gives a
//! plan; applying the plan is the only part that touches anything. Looks happen
//! when a [`DiskWatcher`] says so, and as often as one likes: what is decided
//! depends on what is there, not on how one came to look.

mod flow;
mod settle;
mod watch;
mod absence;
mod file;
mod include;
mod scan;
mod emptied;
mod plan;
mod negative;
mod kept;
mod report;

pub use absence::{Absence, GRACE, Missing};
pub use emptied::emptied;
pub use flow::{ActorSpec, Flow, GenerationKeys, ModuleRef, WireSpec};
pub use include::{Include, IncludeError};
pub use kept::{Claims, KeepError, Kept, OpenKeptError, ReadKeptError};
pub use negative::{Fault, Refusals, RefusedChanges, Standing};
pub use plan::{
    Adjusting, Blocked, ChangePlan, Doubt, Held, Note, Plan, Removals, Retired, Running,
    RunningActor, Starting, StopReason, Stopping, Swapping, Template, Wanted, builtin_digest, plan,
};
pub use report::{ActorView, Refusal, ReloadOptions, Report, View};
pub use scan::{Depth, FetchError, Look, Moment, ScanOptions, Scanner, Sight, Snapshot, Trouble};
pub use settle::{Pace, Settle, Wake};
pub use watch::{Demand, DiskWatcher, Eyes, Watching};
