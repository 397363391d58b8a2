//! `migrate_state`: a module makes its own state of the one that another has left.
//!
//! It is asked in an instance of its own, which is dropped after, so that it may fail
//! in any way and nothing of it is left over.

use std::time::Duration;

use reflowd_runtime::{LeftState, MigrateError, State, StateError, panic::Boundary};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::code::{Ended, Instance, Unstarted};

/// The export.
pub(crate) const EXPORT: &str = "migrate_state";

/// How long a module may take for it.
const TIME: Duration = Duration::from_secs(1);

/// What the module is given.
#[derive(Serialize)]
struct Request<'a> {
    /// The version that the module before gave itself.
    from_version: Option<&'a str>,
    from_digest: String,
    state: &'a RawValue,
}

/// Does the work on a thread where it may take its time.
pub(crate) async fn aside(
    work: impl FnOnce() -> Result<State, MigrateError> + Send + 'static,
) -> Result<State, MigrateError> {
    let done = Boundary::Prepare.aside(work).await;
    done?
}

/// Asks a new instance for the state that it makes of what is left. Blocks.
///
/// # Errors
/// It gives no state, or one over the limit.
pub(crate) fn migrate(
    instance: Result<Instance, Unstarted>,
    left: &LeftState,
) -> Result<State, MigrateError> {
    let failed = |why: String| Err(MigrateError::Failed { why });
    let mut instance = match instance {
        Ok(instance) => instance,
        Err(unstarted) => return failed(format!("has no engine: {unstarted}")),
    };
    let request = Request {
        from_version: left.version.as_deref(),
        from_digest: left.digest.to_string(),
        state: serde_json::from_slice(left.state.text()).expect("a state is JSON"),
    };
    let request = serde_json::to_vec(&request).expect("JSON can be written");
    let answer = match instance.ask(EXPORT, &request, TIME) {
        Ended::Answer(answer) => answer,
        Ended::Guest(error) => return failed(format!("returned an error: {error}")),
        Ended::Bad(why) => return failed(format!("gave {why}")),
        Ended::Trap(why) => return failed(format!("broke: {why}")),
        Ended::Timeout => return failed(format!("does not answer within {TIME:?}")),
    };
    if answer.len() as u64 > left.limit {
        let (size, max) = (answer.len(), left.limit);
        return failed(format!("gave a state over `state_size`: {size} bytes of {max}"));
    }
    State::new(answer).or_else(|error| match error {
        StateError::NoObject(shown) => {
            failed(format!("gave {shown}, and a state is a JSON object"))
        }
        StateError::Fault(fault) => failed(format!("gave a state that nobody could read: {fault}")),
    })
}
