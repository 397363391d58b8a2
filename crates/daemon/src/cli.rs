//! The command line: what each command takes, and what its end tells the shell.

mod client;
mod check;
mod inspect;
mod actors;
mod send;
mod events;
mod tap;
mod logs;
mod graph;
mod state;
mod dead;
mod reload;
mod complete;
mod manual;
mod progress;
mod table;

use std::{
    env,
    ffi::OsStr,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{
    Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, builder::Resettable,
    value_parser,
};
use clap_complete::ArgValueCandidates;
use tokio::runtime;

pub(crate) use client::Client;
pub(crate) use complete::answer_shell;

use actors::Word;

use crate::config::schema;

/// Runs WebAssembly actors from a folder.
#[derive(Debug, Parser)]
#[command(name = "reflowd", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(mut_subcommand("run", |run| without(run, &["socket"])))]
#[command(mut_subcommand("check", |check| without(check, &["socket"])))]
#[command(mut_subcommand("inspect", |inspect| without(inspect, &["socket"])))]
#[command(mut_subcommand("schema", |schema| without(schema, &["config", "socket"])))]
#[command(mut_subcommand("completions", |shell| without(shell, &["config", "socket"])))]
#[command(mut_subcommand("man", |man| without(man, &["config", "socket"])))]
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

impl Cli {
    /// Reads the command line of this process, or ends it with a usage error.
    ///
    /// A variable that is set to nothing counts as unset, as scripts and units expect; clap
    /// would ask for the value of a flag that nobody has given.
    pub(crate) fn of_process() -> Self {
        let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
        let matches = without_variables(Self::command(), is_empty).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// The command without the variables of which `left_out` is true.
fn without_variables(command: clap::Command, left_out: impl Fn(&OsStr) -> bool) -> clap::Command {
    command.mut_args(|arg| match arg.get_env() {
        Some(name) if left_out(name) => arg.env(Resettable::Reset),
        _ => arg,
    })
}

const EXAMPLES: &str = "\
Examples:
  reflowd                                run the daemon with the configuration that is found
  reflowd check                          say everything that `run` would refuse
  reflowd ps                             the actors of the running daemon
  reflowd send counter.increment 5       send one message
  reflowd send filter.in - <FILE         send JSON lines, as fast as the actor takes them
  reflowd tap counter                    watch an actor's messages
  reflowd logs counter                   watch what an actor logs
  reflowd events --follow                watch loads, swaps and refusals
  reflowd dead replay --actor counter    try an actor's dead letters again

Exit codes: 0 done, 1 failed, 2 usage, 65 bad module or data, 69 no daemon, 70 a bug in reflowd,
75 try again, 77 permission, 78 configuration.
The log goes to standard error; REFLOWD_LOG says how much: `REFLOWD_LOG=debug`.";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon
    Run,
    /// Anything else, which ends by itself
    #[command(flatten)]
    Tool(Tool),
}

/// What looks at files, and does not need a daemon, or asks something of one.
#[derive(Debug, Subcommand)]
pub(crate) enum Tool {
    /// Say everything that `run` would refuse, without running
    Check(check::Check),
    /// Tell what is in a module, and whether it would be taken
    Inspect(inspect::Inspect),
    /// List the actors
    Ps(actors::List),
    /// Send a message, or many, to an actor
    Send(send::Send),
    /// Watch an actor's messages, without slowing it down
    Tap(tap::Tap),
    /// Show what an actor logs, and go on
    Logs(logs::Logs),
    /// Tell what has happened
    Events(events::Events),
    /// Draw the flow, with the figures of the daemon that runs
    Graph(graph::Draw),
    /// Get, set, export, import or reset an actor's state
    #[command(subcommand)]
    State(state::State),
    /// List, show, replay or purge messages that could not be delivered or processed
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Look at disk now, and tell what came of it
    Reload(reload::Reload),
    /// Halt an actor after the turn in hand
    Pause(Actor),
    /// Let a paused actor go on
    Resume(Actor),
    /// Let an actor that rests or has failed try again now
    Retry(Actor),
    /// Have an actor run what it ran before, and not take up again what it leaves
    Rollback(actors::Rollback),
    /// Print a JSON Schema of the configuration, for editors
    Schema(Json),
    /// Print what makes a shell complete commands and actors
    Completions(complete::Completions),
    /// Write the manual's pages
    Man(manual::Manual),
}

/// A command that does not show flags of all commands for which it has no use.
/// It takes them all the same, so that they may stand in an alias.
fn without(command: clap::Command, flags: &[&'static str]) -> clap::Command {
    let hidden = |flag: &&'static str| {
        Arg::new(*flag).long(*flag).hide(true).value_parser(value_parser!(PathBuf))
    };
    command.args(flags.iter().map(hidden))
}

/// How to print.
#[derive(Debug, Args)]
pub(crate) struct Json {
    /// Print JSON, as it does anyway
    #[arg(long, hide = true)]
    pub(crate) json: bool,
}

/// Reads how many there may be. None at all is a slip, and its answer would be taken for
/// "there are none".
fn at_least_one(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("it must be 1 or more".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("it must be a whole number".into()),
    }
}

/// Which actor.
#[derive(Debug, Args)]
pub(crate) struct Actor {
    /// The actor's name
    #[arg(add = ArgValueCandidates::new(complete::actors))]
    pub(crate) actor: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
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
    /// It broke, which is a bug in it.
    Broke = 70,
    /// It may work later.
    TryAgain = 75,
    /// The user may not.
    Permission = 77,
    /// The configuration is bad.
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

/// Does one of the things that end by themselves.
///
/// # Errors
/// Why it could not be done.
pub(crate) fn dispatch(tool: Tool, socket: Option<PathBuf>, config: Option<&Path>) -> Outcome {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let outcome = runtime.block_on(async {
        match tool {
            Tool::Check(wanted) => check::check(wanted, config).await,
            Tool::Inspect(wanted) => inspect::inspect(wanted, config).await,
            Tool::Schema(Json { json: _ }) => {
                print_data(format!("{:#}\n", schema()).as_bytes())?;
                Ok(Exit::Done)
            }
            Tool::Completions(wanted) => complete::script(&wanted),
            Tool::Man(wanted) => manual::write(&wanted),
            Tool::Graph(wanted) => {
                graph::graph(&client::Places::new(socket, config), config, wanted).await
            }
            tool => {
                let places = client::Places::new(socket, config);
                ask(&mut Client::connect(&places).await?, tool).await
            }
        }
    });
    // Standard input may be in the middle of a read that nobody can call back.
    runtime.shutdown_background();
    outcome
}

/// Asks something of a daemon.
async fn ask(client: &mut Client, tool: Tool) -> Outcome {
    match tool {
        Tool::Check(_)
        | Tool::Inspect(_)
        | Tool::Schema(_)
        | Tool::Completions(_)
        | Tool::Man(_)
        | Tool::Graph(_) => unreachable!("these need no daemon"),
        Tool::Ps(wanted) => actors::list(client, wanted).await,
        Tool::Tap(wanted) => tap::tap(client, wanted).await,
        Tool::Logs(wanted) => logs::logs(client, wanted).await,
        Tool::State(wanted) => state::state(client, wanted).await,
        Tool::Send(send) => send::send(client, send).await,
        Tool::Events(events) => events::events(client, events).await,
        Tool::Dead(dead) => dead::dead(client, dead).await,
        Tool::Reload(reload) => reload::reload(client, reload).await,
        Tool::Pause(actor) => actors::tell(client, actor, Word::Pause).await,
        Tool::Resume(actor) => actors::tell(client, actor, Word::Resume).await,
        Tool::Retry(actor) => actors::tell(client, actor, Word::Retry).await,
        Tool::Rollback(rollback) => actors::roll_back(client, rollback).await,
    }
}

/// Writes to standard output, with colours where it shows them.
///
/// # Errors
/// [`Exit::Done`] without words when nobody reads any more, as after `| head -1`.
pub(crate) fn print(text: &str) -> Result<(), Stop> {
    let mut out = anstream::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes data to standard output as it is.
///
/// # Errors
/// As of [`print()`].
pub(crate) fn print_data(data: &[u8]) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    written(out.write_all(data).and_then(|()| out.flush()))
}

fn written(outcome: io::Result<()>) -> Result<(), Stop> {
    match outcome {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_things_is_one_or_more() {
        for words in ["tap a --limit 0", "dead list --limit 0", "dead purge --limit 0"] {
            let words = ["reflowd"].into_iter().chain(words.split(' '));
            let error = Cli::try_parse_from(words).unwrap_err().to_string();
            assert!(error.contains("it must be 1 or more"), "{error}");
        }
    }

    #[test]
    fn a_command_shows_the_flags_that_it_has_a_use_for() {
        for (command, shows) in [
            ("run", [true, false]),
            ("check", [true, false]),
            ("inspect", [true, false]),
            ("ps", [true, true]),
            ("reload", [true, true]),
        ] {
            let mut cli = Cli::command();
            cli.build();
            let help = cli.find_subcommand_mut(command).unwrap().render_help().to_string();
            let found = ["--config", "--socket"].map(|flag| help.contains(flag));
            assert_eq!(found, shows, "{help}");
        }
    }

    #[test]
    fn a_flag_of_all_commands_may_stand_on_either_side() {
        for words in
            ["reflowd --socket s ps", "reflowd ps --socket s", "reflowd --socket s inspect x"]
        {
            let cli = Cli::try_parse_from(words.split(' ')).unwrap();
            assert_eq!(cli.socket, Some("s".into()), "{words}");
        }
        let cli = Cli::try_parse_from(["reflowd", "check", "--config", "c"]).unwrap();
        assert_eq!(cli.config, Some("c".into()));
    }
}
