//! `std:stdout`: a line on standard output for each message.
//!
//! Standard output is often a pipe, and a pipe may be full for as long as its
//! reader likes. So nothing is written before there is room for it: the actor
//! waits, and the daemon's threads do not.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use futures_util::future::BoxFuture;
use reflowd_runtime::{Metadata, Type};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::Mutex,
    time::{self, Instant},
};

use super::{
    Builtin, Prepared, port,
    sink::{Lines, Sink, What},
};

/// What a pipe with any room takes without waiting, and never mixes with other writers' bytes.
const PIECE: usize = 4096;

/// The first pause for a reader that is behind, doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// One line at a time, whichever actor it comes from: the process has one standard output.
static WRITING: Mutex<()> = Mutex::const_new(());

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// What of a message is written.
    #[serde(default)]
    what: What,
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        component: "std:stdout".into(),
        description: "writes each message to standard output as a line of JSON".into(),
        inports: vec![port("in", "what is to be written", Type::Any)],
        outports: Vec::new(),
        config_schema: Some(json!({
            "type": "object",
            "properties": { "what": What::schema() },
            "additionalProperties": false,
        })),
        version: None,
    }
}

pub(super) fn prepare(builtin: Builtin, config: Config) -> Result<Prepared, String> {
    let out = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| format!("reflowd has no standard output: {error}"))?;
    Ok(Sink::prepare(builtin, config.what, Screen { out }))
}

/// Standard output, or what stands for it.
pub(super) struct Screen {
    pub(super) out: OwnedFd,
}

impl Lines for Screen {
    fn write<'a>(&'a self, line: &'a [u8], deadline: Instant) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let behind = || "stdout takes no more: whoever reads it is behind".to_string();
            let Ok(_one_at_a_time) = time::timeout_at(deadline, WRITING.lock()).await else {
                return Err(behind());
            };
            let mut rest = line;
            let mut pause = FIRST_PAUSE;
            while !rest.is_empty() {
                match self.write_some(rest).map_err(|error| explain(&error))? {
                    0 => {
                        // Once begun, a line is finished, however long that takes: half
                        // of it cannot be taken back.
                        if rest.len() == line.len() && Instant::now() >= deadline {
                            return Err(behind());
                        }
                        time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                    written => {
                        rest = &rest[written..];
                        pause = FIRST_PAUSE;
                    }
                }
            }
            Ok(())
        })
    }
}

impl Screen {
    /// Writes as much as goes without waiting, which may be nothing.
    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        // The daemon's own lines go through the same lock.
        let _stdout = io::stdout().lock();
        let mut ready = [PollFd::new(&self.out, PollFlags::OUT)];
        match poll(&mut ready, Some(&Timespec::default())) {
            // A reader that is gone counts as ready, so that the write tells of it.
            Ok(1..) => {}
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
        match rustix::io::write(&self.out, &bytes[..bytes.len().min(PIECE)]) {
            Ok(written) => Ok(written),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::BrokenPipe => "stdout is closed: nobody reads it any more".into(),
        _ => format!("cannot write to stdout: {error}"),
    }
}
