//! `reflowd man`: a manual page for each command, from the same source as `--help`.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_mangen::Man;

use super::{Cli, Exit, Outcome, note};

/// The left of a page's footer. By itself a page of a command has that command's name there,
/// and no version.
const SOURCE: &str = concat!("reflowd ", env!("CARGO_PKG_VERSION"));

/// The middle of a page's header.
const MANUAL: &str = "reflowd";

/// Where the pages go.
#[derive(Debug, Args)]
pub(crate) struct Manual {
    /// The folder, which is made where it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes the manual's pages.
pub(super) fn write(wanted: &Manual) -> Outcome {
    let folder = &wanted.folder;
    let shown = folder.display();
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{shown}`"))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let pages = generate(command, folder);
    pages.with_context(|| format!("cannot write the manual into `{shown}`"))?;
    note(&format!("the manual is in `{shown}`: `man {shown}/reflowd.1` shows its first page"));
    Ok(Exit::Done)
}

/// Writes the pages of a command and of all below it.
fn generate(command: clap::Command, folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()).cloned() {
        generate(below, folder)?;
    }
    Man::new(command).source(SOURCE).manual(MANUAL).generate_to(folder).map(drop)
}
