//! `reflowd`: a daemon that runs WebAssembly actors from a folder, and the
//! command line that talks to it.

mod cli;
#[allow(dead_code, unused_imports, reason = "the commands that use it are not there yet")]
mod config;
#[allow(dead_code, reason = "the daemon's start, which serves it, is not wired yet")]
mod admin;
#[allow(dead_code, reason = "the daemon's start, which serves it, is not wired yet")]
mod metrics;
#[allow(dead_code, reason = "the commands that use it are not there yet")]
mod connector;
#[allow(dead_code, reason = "the commands that use it are not there yet")]
mod data_folder;
#[allow(dead_code, reason = "the commands that use it are not there yet")]
mod snapshot;
#[allow(dead_code, reason = "the commands that use it are not there yet")]
mod systemd;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command, Exit, Stop};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command.unwrap_or(Command::Run) {
        Command::Run => Err(Stop::new(
            Exit::Failed,
            anyhow::anyhow!("this build does not run actors yet; it checks, inspects and talks"),
        )),
        Command::Tool(tool) => cli::dispatch(tool, cli.socket, cli.config.as_deref()),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(stop) => {
            if let Some(error) = stop.error {
                cli::note(&format!("error: {error:#}"));
            }
            stop.exit.into()
        }
    }
}
