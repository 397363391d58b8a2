//! What must still be so when something is done that was asked for.
//!
//! Between asking and doing others may have changed what the asker had looked at. Whoever
//! does it, and nobody before, can tell: it looks in the moment in which nobody else acts.

use std::{fmt, sync::Arc};

/// Looked at right before something is done, and only then. By default it holds.
#[derive(Clone, Default)]
pub struct Precondition(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Precondition {
    /// One that holds as long as `still` says so.
    pub fn new(still: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(still)))
    }

    /// Whether it holds now.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.as_ref().is_none_or(|still| still())
    }
}

impl fmt::Debug for Precondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Precondition(…)" } else { "Precondition(none)" })
    }
}
