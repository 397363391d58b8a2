//! Reading a file once, and following one for ever.

use std::{fs, io, path::Path, time::Duration};

use reflowd_runtime::{EventKind, Position};
use tokio::time::{self, Instant};
use tracing::{info, warn};

use super::{
    lines::LineReader,
    opened::{Opened, PathSight, blocking},
    take_up::{self, Gap, Start},
};

/// The interval between looks at a followed file, and at the path of one that does not exist yet.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long a renamed file must stay unchanged before the one in its place is read: its writer may
/// still have it open.
const LET_GO: Duration = Duration::from_secs(1);

/// The pause after a repeated file had no lines, so that it is not read in a busy loop.
const EMPTY_PAUSE: Duration = Duration::from_secs(1);

impl LineReader<'_> {
    /// Puts out the file once, up to its end.
    pub(super) async fn once(&mut self) -> io::Result<()> {
        let come = self.enter();
        let mut opened = self.start(move |path, out| take_up::here(path, come, out)).await?;
        self.read_on(&mut opened).await?;
        self.put_rest(&mut opened).await;
        Ok(())
    }

    /// Puts out the file again and again.
    pub(super) async fn repeat(&mut self) -> io::Result<()> {
        self.enter();
        loop {
            let opened = self.start(|path, out| take_up::here(path, None, out)).await?;
            self.out.come_to(None);
            if !self.pass(opened).await? {
                time::sleep(EMPTY_PAUSE).await;
            }
        }
    }

    /// Puts out the file and what is appended to it, for ever.
    pub(super) async fn follow(&mut self) -> io::Result<()> {
        let come = self.enter();
        let mut opened = self.start(move |path, out| take_up::followed(path, come, out)).await?;
        // The time since which a file that has lost its name has not grown.
        let mut silent: Option<Instant> = None;
        loop {
            match opened.look(self.path).await? {
                PathSight::Same => {
                    silent = None;
                    self.read_on(&mut opened).await?;
                }
                PathSight::Cut => {
                    opened = self.after_cut(opened).await?;
                    continue;
                }
                PathSight::Replaced => {
                    // The writer may not have noticed yet.
                    let now = Instant::now();
                    let since = *silent.get_or_insert(now);
                    if self.read_on(&mut opened).await? {
                        silent = Some(now);
                    } else if now - since >= LET_GO {
                        self.put_rest(&mut opened).await;
                        if let Some(next) = self.next(&mut opened).await? {
                            opened = next;
                            silent = None;
                            continue;
                        }
                    }
                }
            }
            time::sleep(LOOK_AGAIN).await;
            self.tell();
        }
    }

    /// The progress in the file at the path.
    fn enter(&self) -> Option<Position> {
        self.out.enter(&self.path.to_string_lossy())
    }

    /// Finds where to begin, and waits until there is something to read.
    async fn start(
        &mut self,
        find: impl Fn(&Path, &reflowd_runtime::Emitter) -> io::Result<Start> + Clone + Send + 'static,
    ) -> io::Result<Opened> {
        let mut absence = None;
        loop {
            let (path, out, find) = (self.path.to_path_buf(), self.out.clone(), find.clone());
            match blocking(move || find(&path, &out)).await? {
                Start::At(opened) => return Ok(self.begin(opened)),
                Start::Elsewhere(opened, gap) => {
                    self.tell_gap(gap);
                    return Ok(self.begin(opened));
                }
                Start::Nowhere => {
                    absence.get_or_insert_with(|| {
                        self.out.waits_for(&format!(
                            "{} is not there; put it there, or correct `path`",
                            self.path.display()
                        ))
                    });
                    // Only what comes to the path itself is waited for: the folder is not
                    // searched again and again.
                    loop {
                        time::sleep(LOOK_AGAIN).await;
                        let path = self.path.to_path_buf();
                        if blocking(move || Ok(fs::metadata(path).is_ok())).await? {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Notes where reading begins.
    fn begin(&self, mut opened: Opened) -> Opened {
        self.out.come_to(Some(opened.position()));
        opened
    }

    fn tell_gap(&self, Gap { after, why }: Gap) {
        let (actor, file) = (self.out.actor().clone(), self.path.display().to_string());
        let (after_byte, after_line) = (after.at, after.count);
        warn!(%actor, file, after_byte, after_line, why, "the rest of a file may never be read");
        self.out.record(EventKind::SourceGap { actor, file, after_byte, after_line, why });
    }

    /// Goes on after the file was cut: with what a copy of it has and was not read, or at its
    /// first line.
    async fn after_cut(&mut self, mut opened: Opened) -> io::Result<Opened> {
        let (path, read, since) = (self.path.to_path_buf(), opened.position(), opened.since());
        let copy = blocking(move || take_up::cut(&path, read, since)).await?;
        let actor = self.out.actor();
        if let Some(copy) = copy {
            info!(%actor, "the followed file was cut, and its copy is read to the end");
            return Ok(self.begin(copy));
        }
        info!(%actor, path = %self.path.display(), "the followed file was cut, and is read from its beginning");
        // The rest of an unfinished line will never arrive.
        self.put_rest(&mut opened).await;
        Ok(self.begin(opened.again().await?))
    }

    /// Opens the successor of a file that has lost its name; `None` if that is gone again.
    async fn next(&self, opened: &mut Opened) -> io::Result<Option<Opened>> {
        let (path, age, read) = (self.path.to_path_buf(), opened.age().await?, opened.position());
        match blocking(move || take_up::next(&path, age, &read)).await {
            Ok(next) => Ok(Some(self.begin(next))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
