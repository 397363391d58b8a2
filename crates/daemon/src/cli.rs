//! The command line: what each command takes, and what its end tells the shell.

mod client;
mod actors;
mod send;
mod events;
mod reload;
mod table;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use tokio::runtime;

pub(crate) use client::Client;

/// Runs WebAssembly actors from a folder.
#[derive(Debug, Parser)]
#[command(name = "reflowd", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// The configuration file
    #[arg(long, global = true, env = "REFLOWD_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The socket of the daemon to talk to
    #[arg(long, global = true, env = "REFLOWD_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// What to do; `run` where nothing is given
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  reflowd                                run the daemon with the configuration that is found
  reflowd check                          say everything that `run` would refuse
  reflowd ps                             the actors of the running daemon
  reflowd send counter.increment 5       send one message
  reflowd send filter.in - <FILE         send JSON lines, as fast as the actor takes them
  reflowd events --follow                watch loads, swaps and refusals

Exit codes: 0 done, 1 failed, 2 usage, 65 bad module or data, 69 no daemon, 75 try again,
77 permission, 78 configuration.";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon
    Run,
    /// List the actors
    Ps(Json),
    /// Send a message, or many, to an actor
    Send(send::Send),
    /// Tell what has happened
    Events(events::Events),
    /// Look at disk now, and tell what came of it
    Reload(reload::Reload),
    /// Halt an actor after the turn in hand
    Pause(Actor),
    /// Let a paused actor go on
    Resume(Actor),
    /// Let an actor that rests or has failed try again now
    Retry(Actor),
}

/// How to print.
#[derive(Debug, Args)]
pub(crate) struct Json {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which actor.
#[derive(Debug, Args)]
pub(crate) struct Actor {
    /// The actor's name
    pub(crate) actor: String,
}

/// What the end of a command tells the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All was done.
    Done = 0,
    /// It failed, in a way that no other code tells.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// A module, or data that was to be sent, is bad.
    Data = 65,
    /// No daemon answers.
    NoDaemon = 69,
    /// It may work later.
    TryAgain = 75,
    /// The user may not.
    Permission = 77,
    /// The configuration is bad.
    #[allow(dead_code, reason = "the commands that read it are not wired yet")]
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended early. Printed once, by `main`.
#[derive(Debug)]
pub(crate) struct Stop {
    /// For the shell.
    pub(crate) exit: Exit,
    /// For people; nothing where there is nobody to tell.
    pub(crate) error: Option<anyhow::Error>,
}

impl Stop {
    /// With a code of its own.
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: Some(error.into()) }
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, error)
    }
}

/// What a command comes to.
pub(crate) type Outcome = Result<Exit, Stop>;

/// Does what the command line says, but for running the daemon.
pub(crate) fn dispatch(cli: Cli) -> Outcome {
    let Some(command) = cli.command else { return Ok(Exit::Done) };
    let places = client::Places::new(cli.socket, cli.config.as_deref());
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let outcome = runtime.block_on(async {
        let mut client = Client::connect(&places).await?;
        match command {
            Command::Run => Ok(Exit::Done),
            Command::Ps(json) => actors::list(&mut client, json.json).await,
            Command::Send(send) => send::send(&mut client, send).await,
            Command::Events(events) => events::events(&mut client, events).await,
            Command::Reload(reload) => reload::reload(&mut client, reload).await,
            Command::Pause(Actor { actor }) => actors::tell(&mut client, &actor, "pause").await,
            Command::Resume(Actor { actor }) => actors::tell(&mut client, &actor, "resume").await,
            Command::Retry(Actor { actor }) => actors::tell(&mut client, &actor, "retry").await,
        }
    });
    // Standard input may be in the middle of a read that nobody can call back.
    runtime.shutdown_background();
    outcome
}

/// Writes to standard output, with colours where it shows them.
///
/// # Errors
/// [`Exit::Done`] without words when nobody reads any more, as after `| head -1`.
pub(crate) fn print(text: &str) -> Result<(), Stop> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(Stop { exit: Exit::Done, error: None })
        }
        Err(error) => {
            Err(anyhow::Error::new(error).context("cannot write to standard output").into())
        }
    }
}

/// Writes a line for people to standard error, where data does not go.
pub(crate) fn note(text: &str) {
    // With nobody there to read it, there is nothing else to do about it.
    _ = writeln!(anstream::stderr(), "{text}");
}
