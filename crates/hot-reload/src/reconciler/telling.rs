//! What one pass tells: to whoever asked for it, to the log and as events.
//!
//! The report has everything, each time. Log and events have what is new: a
//! complaint is made once and not again while it lasts. A dry run only reports.

use std::{collections::BTreeSet, error::Error, path::Path};

use reflowd_loader::LoadError;
use reflowd_runtime::{ActorName, Digest, EventKind, System};
use tracing::{error, info, warn};

use crate::{
    ChangePlan, Doubt, Held, ModulePlace, Note, Refusal, Report, Running, StopReason, Trouble,
    plan::touched,
};

pub(super) struct Telling {
    pub(super) report: Report,
    system: System,
    /// What earlier passes have said.
    before: BTreeSet<String>,
    /// What this one has to say, said before or not.
    now: BTreeSet<String>,
    silent: bool,
}

impl Telling {
    /// What a pass tells that comes after others which have said that much.
    pub(super) fn new(system: System, before: BTreeSet<String>, silent: bool) -> Self {
        Self { report: Report::default(), system, before, now: BTreeSet::new(), silent }
    }

    /// The report, and what need not be said again while it lasts.
    pub(super) fn end(self) -> (Report, BTreeSet<String>) {
        (self.report, self.now)
    }

    /// Something that keeps the disk from being judged.
    pub(super) fn folder_unknown(&mut self, folder: &Path, trouble: &Trouble) {
        let (path, why) = (folder.display().to_string(), trouble.to_string());
        self.report.warnings.push(format!("{path}: {why}"));
        if self.is_news(format!("folder {path}: {why}")) {
            warn!(%path, %why, "folder cannot be judged; nothing in it is taken for removed");
            self.event(EventKind::FolderUnknown { path, why });
        }
    }

    /// Something that bears the name of a file and is none.
    pub(super) fn ignored(&mut self, path: &Path, what: &str) {
        let (path, why) = (path.display().to_string(), format!("this is {what}"));
        self.report.warnings.push(format!("{path} is ignored: {why}"));
        if self.is_news(format!("ignored {path}: {why}")) {
            warn!(%path, %why, "ignored");
            self.event(EventKind::Ignored { path, why });
        }
    }

    /// The configuration on disk does not come into force.
    pub(super) fn config_refused(&mut self, why: String) {
        if self.is_news(format!("config {why}")) {
            warn!("configuration refused; nothing changed\n{why}");
            self.event(EventKind::ConfigRefused { why: why.clone() });
        }
        self.config_still_refused(why);
    }

    /// The configuration on disk cannot be read any more.
    pub(super) fn config_unknown(&self, why: &str) {
        if !self.silent {
            warn!("configuration cannot be read; nothing changed\n{why}");
            self.event(EventKind::ConfigUnknown { why: why.to_owned() });
        }
    }

    /// The configuration on disk can be read again.
    pub(super) fn config_known(&self) {
        if !self.silent {
            warn!("configuration can be read again");
            self.event(EventKind::ConfigKnown);
        }
    }

    /// The configuration has not come into force yet; where that is said elsewhere.
    pub(super) fn config_still_refused(&mut self, why: String) {
        self.report.refused.push(Refusal { what: "configuration".into(), why });
    }

    /// A module's bytes are not to be had: the next look will say what there is.
    pub(super) fn module_unread(&mut self, module: &ModulePlace, why: &str) {
        if self.is_news(format!("unread {module} {why}")) {
            warn!(%module, %why, "module cannot be read");
        }
    }

    /// A kept module is not what was kept, and nothing else has its bytes.
    pub(super) fn kept_damaged(&mut self, path: &Path, why: &str) {
        let path = path.display().to_string();
        if self.is_news(format!("damaged {path}")) {
            error!(%path, %why, "kept module is damaged");
            self.event(EventKind::DataDamaged { path, why: why.to_owned() });
        }
    }

    /// A module can run.
    pub(super) fn module_loaded(&self, digest: Digest, module: &ModulePlace, component: &str) {
        if !self.silent {
            info!(%module, digest = %digest.short(), %component, "module loaded");
        }
    }

    /// Bytes are no module that can run. True where that is said for the first time.
    pub(super) fn module_refused(
        &mut self,
        digest: Digest,
        module: &ModulePlace,
        error: &LoadError,
    ) -> bool {
        let (module, why) = (module.to_string(), chain(error));
        // The bytes are remembered as bad, so this is not said twice as long as they are.
        if self.silent {
            return false;
        }
        error!(%module, digest = %digest.short(), %why, "module refused");
        let reason = error.reason().into();
        self.event(EventKind::ModuleRefused { module, digest: Some(digest), reason, why });
        true
    }

    /// An actor cannot become what disk asks for.
    pub(super) fn blocked(&mut self, actor: &ActorName, doubt: &Doubt, why: String) {
        if let Doubt::OnItsWay(_) = doubt {
            if self.silent {
                self.report.warnings.push(format!("`{actor}`: {why}"));
            } else {
                self.report.refused.push(Refusal { what: actor.to_string(), why });
            }
            return;
        }
        if doubt.passes() {
            return;
        }
        self.report.refused.push(Refusal { what: actor.to_string(), why: why.clone() });
        if self.is_news(format!("blocked {actor} {why}")) {
            warn!(%actor, %why, "actor cannot change");
            self.event(EventKind::ChangeRefused { actors: vec![actor.clone()], why });
        }
    }

    /// Many actors would go at once.
    pub(super) fn held(&mut self, held: &Held) {
        self.hold(format!("{} of {} actors would be removed at once", held.removes, held.of));
    }

    /// Something looks like an accident and waits for an operator's word.
    pub(super) fn hold(&mut self, what: String) {
        let why = format!("{what}; if that is meant: `reflowd reload --allow-removal`");
        if self.is_news(format!("held {why}")) {
            warn!(%why, "removal held");
            self.event(EventKind::RemovalHeld { why: why.clone() });
        }
        self.report.held = Some(why);
    }

    /// Whether something waits for an operator's word.
    pub(super) fn holds(&self) -> bool {
        self.report.held.is_some()
    }

    /// Something that an operator should know.
    pub(super) fn note(&mut self, note: &Note, running: &Running) {
        let text = note.to_string();
        let refused = match note {
            Note::GoesOn { actor, doubt } => Some((actor.to_string(), doubt)),
            Note::NotStarted { file, doubt } => Some((file.display().to_string(), doubt)),
            Note::NameDoesNotFit { .. } | Note::NameTaken { .. } => None,
        };
        match refused {
            Some((
                what,
                doubt @ (Doubt::Refused { .. } | Doubt::Pinned { .. } | Doubt::Banned { .. }),
            )) => {
                self.report.refused.push(Refusal { what, why: doubt.to_string() });
            }
            // Disk cannot have what it asks for, so this is no pass that has found nothing.
            Some((what, doubt)) if matches!(note, Note::GoesOn { .. }) => {
                let why = format!("{doubt}; it goes on with the module that is kept");
                self.report.refused.push(Refusal { what, why });
            }
            _ => self.report.warnings.push(text.clone()),
        }
        if !self.is_news(text.clone()) {
            return;
        }
        warn!("{text}");
        self.event(match note {
            Note::GoesOn { actor, doubt: Doubt::Gone } => {
                let module =
                    running.actors.get(actor).map(|running| running.spec.module.to_string());
                EventKind::FileGone {
                    module: module.unwrap_or_default(),
                    actors: vec![actor.clone()],
                }
            }
            Note::GoesOn { actor, .. } => {
                EventKind::ChangeRefused { actors: vec![actor.clone()], why: text }
            }
            Note::NameDoesNotFit { file, digest } => EventKind::ModuleLoaded {
                module: file.display().to_string(),
                digest: *digest,
                why: text,
            },
            Note::NotStarted { file, .. } | Note::NameTaken { file, .. } => {
                EventKind::Ignored { path: file.display().to_string(), why: text }
            }
        });
    }

    /// A change is not made; its actors go on as they are.
    pub(super) fn change_refused(&mut self, change: &ChangePlan, why: &str) {
        let actors = touched(change);
        let what = actors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if self.is_news(news_of(&actors, why)) {
            let waits: Vec<_> = change.start.iter().map(|start| start.actor.as_str()).collect();
            let waits = waits.join(", ");
            if waits.is_empty() {
                warn!(actors = %what, %why, "change refused; its actors go on as they are");
            } else {
                warn!(actors = %what, not_started = %waits, %why, "change refused");
            }
            let actors = actors.into_iter().collect();
            self.event(EventKind::ChangeRefused { actors, why: why.to_owned() });
        }
        self.report.refused.push(Refusal { what, why: why.to_owned() });
    }

    /// A change that was refused is tried again: if it is refused again, that is no news.
    pub(super) fn still_refused(&mut self, change: &ChangePlan, why: &str) {
        self.now.insert(news_of(&touched(change), why));
    }

    /// A change is made; or would be, in a dry run.
    pub(super) fn change(&mut self, change: &ChangePlan) {
        let started = || change.start.iter().map(|start| &start.actor);
        let stopped = || change.stop.iter().map(|stop| &stop.actor);
        let renamed = || change.start.iter().filter_map(|start| start.was.as_ref());
        let mut changed = touched(change);
        changed.retain(|name| !started().chain(stopped()).chain(renamed()).any(|n| n == name));
        let taken = |why: &StopReason| matches!(why, StopReason::Taken { .. });
        let removed = change.stop.iter().filter(|stop| !taken(&stop.why)).map(|stop| &stop.actor);
        self.report.added.extend(started().cloned());
        self.report.changed.extend(changed);
        self.report.removed.extend(removed.chain(renamed()).cloned());
        if !self.silent {
            for stop in &change.stop {
                info!(actor = %stop.actor, why = %stop.why, "actor is being drained");
            }
        }
    }

    /// All changes are made.
    pub(super) fn changed(&self) {
        let Report { added, changed, removed, .. } = &self.report;
        if !(added.is_empty() && changed.is_empty() && removed.is_empty()) {
            self.event(EventKind::Changed {
                added: added.clone(),
                changed: changed.clone(),
                removed: removed.clone(),
            });
        }
    }

    /// Whether something is new and worth saying. It is not said again while it lasts.
    fn is_news(&mut self, what: String) -> bool {
        let known = self.before.contains(&what);
        self.now.insert(what) && !known && !self.silent
    }

    fn event(&self, kind: EventKind) {
        if !self.silent {
            self.system.events().record(kind);
        }
    }
}

/// What it is to say that a change among these actors is refused.
fn news_of(actors: &BTreeSet<ActorName>, why: &str) -> String {
    let actors: Vec<_> = actors.iter().map(ActorName::as_str).collect();
    format!("change {} {why}", actors.join(", "))
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
