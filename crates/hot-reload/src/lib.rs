//! From a change on disk to swaps of running actors.
//!
//! A look at the disk gives a [`Snapshot`]; comparing it with what runs gives a
//! plan; applying the plan is the only part that touches anything. Looks happen
//! when a [`DiskWatcher`] says so, and as often as one likes: what is decided
//! depends on what is there, not on how one came to look.
//!
//! ```no_run
//! use std::{collections::BTreeMap, collections::BTreeSet, path::Path};
//!
//! use reflowd_hot_reload::*;
//!
//! # async fn example(flow: Flow) {
//! let folder = Path::new("/srv/modules");
//! let look = Look { modules: folder.into(), ..Look::default() };
//! let mut watcher = DiskWatcher::new(look.roots(), Pace::default(), Eyes::Open);
//! let mut scanner = Scanner::new(ScanOptions::default());
//! let (retired, running) = (Retired::default(), Running::default());
//! loop {
//!     let depth = match watcher.next().await {
//!         Wake::Demand => Depth::Everything,
//!         Wake::Events | Wake::Again | Wake::Rescan => Depth::Changed,
//!     };
//!     // In a daemon, on a thread that may block.
//!     let snapshot = scanner.scan(&look, &BTreeSet::new(), depth, Moment::now());
//!     if let Some(at) = snapshot.again {
//!         watcher.again(at);
//!     }
//!     let plan = plan(
//!         Wanted {
//!             flow: &flow,
//!             snapshot: &snapshot,
//!             folder,
//!             autostart: Some(&Template::default()),
//!             retired: &retired,
//!             refused: &BTreeMap::new(),
//!             loading: &BTreeSet::new(),
//!             bans: &Bans::default(),
//!             recollected: &BTreeMap::new(),
//!             removals: Removals::Guarded,
//!         },
//!         &running,
//!     );
//!     for change in plan.changes {
//!         // Prepare all of it; then swap all of it, or remember why not.
//!     }
//! }
//! # }
//! ```

mod reconciler;
mod blueprint;
mod flow;
mod settle;
mod watch;
mod absence;
mod file;
mod stranger;
mod include;
mod scan;
mod snapshot;
mod emptied;
mod running;
mod generations;
mod history;
mod plan;
mod planner;
mod negative;
mod own_file;
mod seal;
mod kept;
mod former_states;
mod state_files;
mod report;

pub use absence::{Absence, GRACE, Missing};
pub use blueprint::{Blueprint, Checked, ConfigFiles, Draft, Found, Misfit, Texts};
pub use emptied::emptied;
pub use flow::{ActorSpec, Flow, GenerationKeys, ModulePlace, ModuleRef, WaitSpec, WireSpec};
pub use former_states::{FormerStates, OpenFormerStatesError, ReadFormerStateError};
pub use generations::{
    Ban, Bans, Former, Generations, LeftBehind, PutAside, PutAsideState, Standing as TrialStanding,
    Verdict,
};
pub use history::{History, HistoryError, WriteHistoryError};
pub use include::{Include, IncludeError};
pub use kept::{Claims, KeepError, Kept, OpenKeptError, ReadKeptError};
pub use negative::{BadModules, Fault, Holds, RefusedChanges, Standing};
pub use own_file::read_own_file;
pub use plan::{
    Adjusting, Blocked, ChangePlan, Doubt, Held, Note, Plan, Removals, Retired, Starting,
    StopReason, Stopping, Swapping, Template, Wanted, builtin_digest,
};
pub use planner::plan;
pub use reconciler::{Parts, Passes, Reconciler, ReloadError, Reloader, RollBackError};
pub use report::{ActorView, ModuleFile, Refusal, ReloadOptions, Remaining, Report, View};
pub use running::{Running, RunningActor};
pub use scan::{Depth, FetchError, Look, Moment, ScanOptions, Scanner};
pub use seal::{BrokenSeal, Sealed, seal, unseal};
pub use settle::{Pace, Settle, Wake};
pub use snapshot::{Sight, Snapshot, Trouble};
pub use state_files::StateFiles;
pub use stranger::Stranger;
pub use watch::{Demand, DiskWatcher, Eyes, Watching};
