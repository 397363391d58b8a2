//! What a shell offers when somebody presses the tab key: commands, flags, values that are one
//! of a few words, and the actors and ports of the daemon that runs.
//!
//! The shell runs this binary for it, so nothing here may take long or say anything: where
//! no daemon answers at once, there are no names.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::anyhow;
use clap::{Args, CommandFactory as _, builder::PossibleValuesParser};
use clap_complete::{CompleteEnv, CompletionCandidate, env::Shells};
use reflowd_loader::EngineKind;
use reflowd_runtime::{Reason, Type};
use tokio::{runtime, time};

use super::{Cli, Client, Exit, Outcome, Stop, client::Places, print_data};
use crate::admin::{Graph, Node};

/// The variable by which a shell's script asks for completions.
const VARIABLE: &str = "REFLOWD_COMPLETE";

/// How long the daemon may take to say what its actors are.
const PATIENCE: Duration = Duration::from_millis(300);

/// Which shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_parser = PossibleValuesParser::new(["bash", "elvish", "fish", "powershell", "zsh"]))]
    shell: String,
}

const EXAMPLES: &str = "\
Examples:
  reflowd completions bash >~/.local/share/bash-completion/completions/reflowd
  reflowd completions zsh >~/.zfunc/_reflowd
  reflowd completions fish >~/.config/fish/completions/reflowd.fish";

/// Answers a shell that asks for completions, and ends the process; does nothing otherwise.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
}

/// Prints the script with which a shell asks for completions.
pub(super) fn script(wanted: &Completions) -> Outcome {
    let shells = Shells::builtins();
    let shell = shells
        .completer(&wanted.shell)
        .ok_or_else(|| Stop::new(Exit::Usage, anyhow!("there is no shell `{}`", wanted.shell)))?;
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, "reflowd", "reflowd", "reflowd", &mut script)
        .map_err(anyhow::Error::from)?;
    print_data(&script)?;
    Ok(Exit::Done)
}

/// The names of actors.
pub(super) fn actors() -> Vec<CompletionCandidate> {
    let actors = live().actors;
    actors.into_iter().map(|actor| offered(actor.name.clone(), &actor)).collect()
}

/// Actors, and their ports as `actor.port`.
pub(super) fn actors_and_ports() -> Vec<CompletionCandidate> {
    let mut offers = Vec::new();
    for actor in live().actors {
        offers.push(offered(actor.name.clone(), &actor));
        for port in actor.inports.iter().chain(&actor.outports) {
            offers.push(offered(format!("{}.{port}", actor.name), &actor));
        }
    }
    offers.sort();
    offers.dedup_by(|a, b| a.get_value() == b.get_value());
    offers
}

/// Inports as `actor.port`.
pub(super) fn inports() -> Vec<CompletionCandidate> {
    let mut offers = Vec::new();
    for actor in live().actors {
        for port in &actor.inports {
            offers.push(offered(format!("{}.{port}", actor.name), &actor));
        }
    }
    offers
}

/// Outports, alone and as `actor.port`.
pub(super) fn outports() -> Vec<CompletionCandidate> {
    let mut offers = Vec::new();
    for actor in live().actors {
        for port in &actor.outports {
            offers.push(offered(format!("{}.{port}", actor.name), &actor));
            offers.push(CompletionCandidate::new(port.to_string()));
        }
    }
    offers.sort();
    offers.dedup_by(|a, b| a.get_value() == b.get_value());
    offers
}

/// The types of messages.
pub(super) fn types() -> Vec<CompletionCandidate> {
    words(Type::ALL.map(Type::name))
}

/// The classes of reasons for dead letters.
pub(super) fn reasons() -> Vec<CompletionCandidate> {
    words(Reason::CLASSES)
}

/// The engines that run modules.
pub(super) fn engines() -> Vec<CompletionCandidate> {
    words(EngineKind::ALL.map(|kind| kind.to_string()))
}

fn words(words: impl IntoIterator<Item = impl Into<OsString>>) -> Vec<CompletionCandidate> {
    words.into_iter().map(CompletionCandidate::new).collect()
}

fn offered(text: String, actor: &Node) -> CompletionCandidate {
    CompletionCandidate::new(text).help(actor.module.clone().map(Into::into))
}

/// The flow of the daemon that runs; an empty one, where none answers soon.
fn live() -> Graph {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let socket = named(&arguments, "--socket").or_else(|| of_environment("REFLOWD_SOCKET"));
    let config = named(&arguments, "--config");
    let Ok(runtime) = runtime::Builder::new_current_thread().enable_all().build() else {
        return Graph::default();
    };
    let asked = async {
        let places = Places::new(socket, config.as_deref()).without_held();
        Client::connect(&places).await?.get::<Graph>("/v1/graph").await
    };
    let answer = runtime.block_on(async { time::timeout(PATIENCE, asked).await });
    answer.ok().and_then(Result::ok).unwrap_or_default()
}

/// What the command line so far gives for a flag.
fn named(arguments: &[OsString], flag: &str) -> Option<PathBuf> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str()?;
        if text == flag {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(value) = text.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value.into());
        }
    }
    None
}

fn of_environment(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_before_the_cursor_say_which_daemon_is_asked() {
        let of = |text: &str| {
            let arguments: Vec<OsString> = text.split(' ').map(Into::into).collect();
            named(&arguments, "--socket")
        };
        assert_eq!(of("reflowd --socket s ps"), Some("s".into()));
        assert_eq!(of("reflowd ps --socket=s"), Some("s".into()));
        assert_eq!(of("reflowd --sockets s"), None);
        assert_eq!(of("reflowd ps --socket"), None);
    }
}
