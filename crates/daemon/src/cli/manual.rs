//! `reflowd man`: a manual page for each command, from the same source as `--help`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};

use super::{Cli, Exit, Outcome, note};

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
    let pages = clap_mangen::generate_to(Cli::command(), folder);
    pages.with_context(|| format!("cannot write the manual into `{shown}`"))?;
    note(&format!("the manual is in `{shown}`: `man {shown}/reflowd.1` shows its first page"));
    Ok(Exit::Done)
}
