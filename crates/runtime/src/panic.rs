//! What a panic said.
//!
//! An error of this program in one actor's turn must not be the end of the actor,
//! let alone of its mailbox: a turn and a source run where a panic is caught, and
//! what it said is told like any other failure.

use std::any::Any;

/// The words of a panic, as far as it had any.
pub(crate) fn said(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "a panic without words"
    }
}
