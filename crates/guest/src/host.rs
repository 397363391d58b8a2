//! What a turn asks of whoever runs it: the daemon, or a test.

use crate::Level;

/// The daemon's side of a turn, in the JSON in which it speaks.
pub(crate) trait Host {
    /// Puts messages out: an object of ports with messages.
    fn send(&mut self, outputs: String);

    /// A value of the state, or `null`.
    fn state(&mut self, key: &str) -> String;

    /// Sets a value of the state.
    fn set_state(&mut self, key: &str, value: String);

    /// Writes a line to the actor's log.
    fn log(&mut self, level: Level, text: &str);
}
