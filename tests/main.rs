//! reflowd as its operator sees it: the built binary, in a folder of its own.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what a test measures is printed")]

mod load;
mod random;
mod rig;
#[path = "../crates/loader/tests/server/mod.rs"]
mod server;

mod sample;
mod readme;
mod message;
mod swap;
mod reload;
mod rollouts;
mod download;
mod trial;
mod secrets;
mod budget;
mod health;
mod metrics;
mod languages;
mod admin;
mod stop;
mod systemd;
mod trace;
mod saved;
mod dead;
mod connectors;
mod start;
mod events;
mod refusal;
mod bounds;
mod command;
mod live;
mod log;
mod state;
mod hostile;
mod panics;
mod storm;
