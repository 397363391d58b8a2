//! What a running daemon cannot take up.

use super::{Config, report::Diagnostic};

/// The keys that differ and take effect only when the daemon starts. Everything else applies to
/// the running one.
pub(crate) fn restart_only(old: &Config, new: &Config) -> Vec<Diagnostic> {
    let (was, is) = (&old.daemon, &new.daemon);
    let keys = [
        ("daemon.modules", was.modules != is.modules),
        ("daemon.data", was.data != is.data),
        ("daemon.quiet", was.quiet != is.quiet),
        ("daemon.rescan", was.rescan != is.rescan),
        ("daemon.watch", was.watch != is.watch),
        ("daemon.autostart", was.autostart != is.autostart),
        ("daemon.drain", was.drain != is.drain),
        ("daemon.keep", was.keep != is.keep),
        ("daemon.dead_letters", was.dead_letters != is.dead_letters),
        ("daemon.module_size", was.module_size != is.module_size),
        ("daemon.download_hosts", was.downloads.hosts != is.downloads.hosts),
        ("daemon.download_timeout", was.downloads.timeout != is.downloads.timeout),
        ("daemon.authorities", was.downloads.authorities != is.downloads.authorities),
        ("daemon.engine", was.engine != is.engine),
        ("daemon.memory_budget", was.memory_budget != is.memory_budget),
        ("daemon.allow_insecure_dir", was.allow_insecure_dir != is.allow_insecure_dir),
        ("admin.socket", old.admin.socket != new.admin.socket),
        ("admin.listen", old.admin.listen != new.admin.listen),
        ("admin.tokens", old.admin.tokens != new.admin.tokens),
    ];
    let changed = keys.into_iter().filter(|(_, differs)| *differs);
    changed
        .map(|(key, _)| {
            // A key that was removed stands nowhere; then the sentence has to do.
            let place = new.places.keys.get(key);
            Diagnostic::error("E0301", format!("a change of `{key}` needs a restart"))
                .at_some(place, "differs from what the daemon runs with")
                .help("restart the daemon, or take the change back; nothing else of this edit applies until then")
        })
        .collect()
}
