//! Actors for reflowd, in Rust.
//!
//! An actor is a struct, and the struct is its state: reflowd keeps it between two
//! turns, through restarts and through new versions of the module. What comes in and
//! goes out are ordinary values with `serde`.
//!
//! ```
//! use reflowd_guest::{Actor, Outcome, Port, Turn, export};
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize)]
//! struct Sum { total: i64 }
//!
//! impl Actor for Sum {
//!     const INPORTS: &[Port] = &[Port::integer("add")];
//!     const OUTPORTS: &[Port] = &[Port::integer("sum")];
//!     fn process(&mut self, turn: &mut Turn<'_>) -> Outcome {
//!         self.total += turn.take::<i64>("add")?;
//!         turn.send("sum", &self.total)
//!     }
//! }
//! export!(Sum);
//!
//! // And in its tests, with no WebAssembly:
//! let mut sum = reflowd_guest::Bench::<Sum>::new();
//! sum.process("add", 2).unwrap();
//! sum.process("add", 3).unwrap();
//! assert_eq!(sum.sent::<i64>("sum"), [2, 5]);
//! assert_eq!(sum.state().total, 5);
//! ```
//!
//! Build it as a `cdylib` for `wasm32-unknown-unknown` and put the file into the
//! folder that reflowd watches.

mod actor;
mod turn;
mod port;
mod message;
mod outcome;
mod bench;
mod host;
#[doc(hidden)]
#[cfg(target_arch = "wasm32")]
pub mod wasm;

pub use actor::{Actor, Former};
pub use bench::{Bench, Line};
pub use message::{Message, Type};
pub use outcome::{Error, Outcome};
pub use port::Port;
pub use turn::{Level, Turn};

/// The plug-in crate underneath, for what is not wrapped here.
#[cfg(target_arch = "wasm32")]
pub use extism_pdk;
/// For values that have no type of their own.
pub use serde_json::{Value, json};

/// Makes an actor the one of this module: exports what reflowd calls.
///
/// `validate_config` and `migrate_state` are exported where they are named:
/// `export!(Sum, validate_config, migrate_state)`. Going back from a module that has
/// migrated the state costs the state of its turns, so name it only where there is
/// something to migrate.
#[macro_export]
macro_rules! export {
    ($actor:ident $(, $more:ident)* $(,)?) => {
        $crate::__export!(get_metadata, $actor, stringify!($actor));
        $crate::__export!(process, $actor);
        $($crate::__export!($more, $actor);)*
    };
}

/// One export.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($name:ident, $actor:ident $(, $arg:expr)?) => {
        const _: () = {
            #[cfg(target_arch = "wasm32")]
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> i32 {
                $crate::wasm::$name::<$actor>($($arg)?)
            }
            // Elsewhere it is only checked that there is such an actor.
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() = || {
                fn is_actor<A: $crate::Actor>() {}
                is_actor::<$actor>();
                $(_ = $arg;)?
            };
        };
    };
}
