//! `reflowd`: a daemon that runs WebAssembly actors from a folder, and the
//! command line that talks to it.

mod cli;
mod run;
mod signals;
mod blueprint;
mod config;
mod connector;
mod admin;
mod connections;
mod request_head;
mod coding;
mod percent;
mod retry_after;
mod receipt;
mod metrics;
mod saved_set;
mod snapshot;
mod event_log;
mod running_mark;
mod data_folder;
mod memory;
mod process;
mod systemd;
mod watchdog;
mod logging;
#[cfg(feature = "otlp")]
mod otlp;

use std::process::ExitCode;

use reflowd_runtime::panic::Boundary;

use crate::cli::{Cli, Command, Exit, Stop};

/// Gives memory back to the system some ten seconds after it is freed, whatever its size
/// and whichever thread had it, so that what a guest has had for a moment does not stay
/// with the daemon. The allocator of the C library comes to keep blocks of up to 32 MiB.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::answer_shell();
    let cli = Cli::of_process();
    let outcome = Boundary::Main.catch(|| match cli.command.unwrap_or(Command::Run) {
        Command::Run => run::run(cli.config.as_deref()),
        Command::Tool(tool) => cli::dispatch(tool, cli.socket, cli.config.as_deref()),
    });
    match outcome.unwrap_or_else(|panic| Err(Stop::new(Exit::Broke, panic))) {
        Ok(exit) => exit.into(),
        Err(stop) => {
            if let Some(error) = stop.error {
                cli::note(&format!("error: {error:#}"));
            }
            stop.exit.into()
        }
    }
}
