//! The keys of `[daemon]` and `[admin]`.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use reflowd_loader::{Authorities, DownloadRules, EngineKind};

use toml::de::DeValue;

use super::{
    Parsing,
    actor::host,
    environment::{Environment, normal},
    reader::{Item, Table},
};
use crate::admin::{Role, Tokens, usable_token};

/// The keys of the daemon itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DaemonConfig {
    /// The watched folder. Absolute.
    pub(crate) modules: PathBuf,
    /// Where kept modules, dead letters and snapshots are. Absolute.
    pub(crate) data: PathBuf,
    /// Whether a module that no configured actor uses becomes an actor of its own.
    pub(crate) autostart: bool,
    /// How long a file must have stood still to count.
    pub(crate) quiet: Duration,
    /// How long a stop waits for the flow to empty itself.
    pub(crate) drain: Duration,
    /// The time between two looks at the folders when no event asks for one.
    pub(crate) rescan: Duration,
    /// Whether the system is asked to tell of changes, or only rescans notice them.
    pub(crate) watch: bool,
    /// How much of what went live is kept.
    pub(crate) keep: Keep,
    /// Bytes of dead letters on disk.
    pub(crate) dead_letters: u64,
    /// What runs modules.
    pub(crate) engine: EngineKind,
    /// Bytes that all queues may hold together; half of what the machine has where it is not set.
    pub(crate) memory_budget: Option<u64>,
    /// Whether a folder that others may write to is taken.
    pub(crate) allow_insecure_dir: bool,
    /// The largest module, in bytes.
    pub(crate) module_size: u64,
    /// What downloads of modules are held to.
    pub(crate) downloads: DownloadRules,
}

/// How much of what went live is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Generations of one actor.
    pub(crate) generations: u64,
    /// Bytes of modules, all together.
    pub(crate) bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { generations: 5, bytes: 1 << 30 }
    }
}

/// Where the daemon is talked to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AdminConfig {
    /// The Unix socket. Absolute.
    pub(crate) socket: PathBuf,
    /// A TCP address, where one is wanted too: on the loopback interface, unless there are tokens.
    pub(crate) listen: Option<SocketAddr>,
    /// What callers there have to show.
    pub(crate) tokens: Tokens,
}

impl DaemonConfig {
    /// What holds where nothing is written. Folders are taken from `base`.
    pub(super) fn defaults(base: &Path, environment: &Environment) -> Self {
        Self {
            modules: base.join("modules"),
            data: environment.folder("STATE_DIRECTORY").unwrap_or_else(|| base.join("data")),
            autostart: true,
            quiet: Duration::from_millis(100),
            drain: Duration::from_secs(10),
            rescan: Duration::from_secs(5),
            watch: true,
            keep: Keep::default(),
            dead_letters: 256 << 20,
            engine: EngineKind::default(),
            memory_budget: None,
            allow_insecure_dir: false,
            module_size: 32 << 20,
            downloads: DownloadRules::default(),
        }
    }

    pub(super) fn read(&mut self, mut table: Table<'_>, base: &Path, environment: &Environment) {
        set(&mut self.modules, path(&mut table, "modules", base));
        set(&mut self.data, path(&mut table, "data", base));
        set(&mut self.autostart, table.boolean("autostart"));
        set(&mut self.quiet, table.duration("quiet"));
        set(&mut self.drain, table.duration_from("drain", Duration::ZERO));
        set(&mut self.rescan, table.duration("rescan"));
        set(&mut self.watch, table.boolean("watch"));
        if let Some(mut keep) = table.table("keep") {
            set(&mut self.keep.generations, keep.integer("generations", 1..=1000));
            set(&mut self.keep.bytes, keep.size("bytes", 1..=u64::MAX >> 1));
            keep.finish();
        }
        set(&mut self.dead_letters, table.size("dead_letters", 1 << 20..=1 << 40));
        let engines = [("direct", EngineKind::Direct), ("extism", EngineKind::Extism)];
        set(&mut self.engine, table.choice("engine", &engines));
        let budget = table.size("memory_budget", 1 << 20..=u64::MAX >> 1);
        self.memory_budget = budget.or(self.memory_budget);
        set(&mut self.allow_insecure_dir, table.boolean("allow_insecure_dir"));
        set(&mut self.module_size, table.size("module_size", 8..=1 << 32));
        if let Some(hosts) = table.strings("download_hosts") {
            let hosts = hosts.iter().filter_map(|(item, text)| download_host(item, text));
            self.downloads.hosts = hosts.collect();
        }
        set(&mut self.downloads.timeout, table.duration("download_timeout"));
        set(&mut self.downloads.authorities, authorities(&mut table, base, environment));
        table.finish();
    }
}

impl AdminConfig {
    pub(super) fn read(&mut self, mut table: Table<'_>, base: &Path) {
        set(&mut self.socket, path(&mut table, "socket", base));
        self.listen = listen(&mut table, self.tokens.is_empty());
        table.finish();
    }
}

/// The socket where none is written: beside what systemd made for the service, else with the data.
pub(super) fn default_socket(data: &Path, environment: &Environment) -> PathBuf {
    let folder = environment.folder("RUNTIME_DIRECTORY").unwrap_or_else(|| data.into());
    folder.join("reflowd.sock")
}

/// Puts a value where there is one.
pub(super) fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn path(table: &mut Table<'_>, key: &'static str, base: &Path) -> Option<PathBuf> {
    let item = table.get(key)?;
    let text = item.string("a path in quotes")?;
    if text.is_empty() || text.contains('\0') {
        return item.refuse("E0104", format!("`{key}` is no path"), |d| {
            d.at(&item.place, "must name a path")
        });
    }
    Some(normal(&base.join(text)))
}

fn download_host(item: &Item<'_>, text: &str) -> Option<String> {
    if text == "*" {
        return item.refuse("E0104", "`download_hosts` cannot be every host", |d| {
            d.at(&item.place, "a listed host may have any address, one within your network too")
                .help("name the hosts, or leave the key out for every host with a public address")
        });
    }
    host(item, text)
}

/// The certificates in a file, read once: what was checked is what is used.
fn authorities(
    table: &mut Table<'_>,
    base: &Path,
    environment: &Environment,
) -> Option<Authorities> {
    let place = table.get("authorities")?;
    let path = path(table, "authorities", base)?;
    let text = match environment.read_secret(&path) {
        Ok(text) => text,
        Err(error) => {
            return place.refuse("E0104", error.to_string(), |d| d.at(&place.place, "needed here"));
        }
    };
    match Authorities::from_pem(text.as_bytes()) {
        Ok(authorities) => Some(authorities),
        Err(error) => {
            let message = format!("`{}` has no authorities: {error}", path.display());
            place.refuse("E0104", message, |d| {
                d.at(&place.place, "must be a file of certificates")
                    .help("name a PEM file with the certificate of each authority")
            })
        }
    }
}

impl Parsing<'_> {
    /// The tokens of `[admin]`, by role. Each comes from a credential, a file that nobody
    /// else can read, or the environment; never from the configuration itself.
    pub(super) fn tokens(&mut self, admin: &mut Table<'_>) -> Tokens {
        let mut tokens = Tokens::default();
        let Some(mut table) = admin.table("tokens") else { return tokens };
        for role in Role::ALL {
            let Some(item) = table.get(role.name()) else { continue };
            if matches!(item.value, DeValue::String(_)) {
                item.refuse::<()>("E0112", "a token stands in the configuration", |d| {
                    d.at(&item.place, "whoever can read this file has it").help(
                        "write `{ credential = \"…\" }`, `{ file = \"…\" }` or `{ env = \"…\" }`",
                    )
                });
                continue;
            }
            let Some(token) = self.reference(&item) else { continue };
            if is_exposed(&item) {
                continue;
            }
            match usable_token(&token) {
                Ok(token) => tokens.add(role, token),
                Err(why) => {
                    item.refuse::<()>("E0112", format!("this token {why}"), |d| {
                        d.at(&item.place, "must be 16 or more ASCII characters")
                            .help("`openssl rand -hex 32` makes a good one")
                    });
                }
            }
        }
        table.finish();
        tokens
    }
}

/// Whether a token comes from a `{ file = … }` that others than its owner can read, which is
/// reported.
pub(super) fn is_exposed(item: &Item<'_>) -> bool {
    let path = || {
        let DeValue::Table(entries) = item.value else { return None };
        let DeValue::String(text) = entries.get("file")?.get_ref() else { return None };
        let folder = item.place.file.parent().unwrap_or(Path::new("/"));
        let path = normal(&folder.join(&**text));
        let mode = path.metadata().ok()?.permissions().mode();
        (mode & 0o077 != 0).then(|| path.display().to_string())
    };
    let Some(file) = path() else { return false };
    item.refuse::<()>("E0112", format!("others can read the token in `{file}`"), |d| {
        d.at(&item.place, "needs a file of mode 0600").help(format!("chmod 600 {file}"))
    });
    true
}

fn listen(table: &mut Table<'_>, open: bool) -> Option<SocketAddr> {
    let item = table.get("listen")?;
    let text = item.string("an address with a port, such as \"127.0.0.1:9670\"")?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        return item.refuse("E0104", format!("`listen` is no address: `{text}`"), |d| {
            d.at(&item.place, "not an address with a port")
                .help("write numbers, such as \"127.0.0.1:9670\" or \"[::1]:9670\"")
        });
    };
    if open && !address.ip().is_loopback() {
        let message = format!("`listen` would open the daemon to others on {}", address.ip());
        return item.refuse("E0104", message, |d| {
            d.at(&item.place, "not a loopback address")
                .note("whoever reaches this address may do anything with the daemon")
                .help("listen on 127.0.0.1 or [::1], or ask for tokens: `tokens = { operate = { file = \"…\" } }`")
        });
    }
    Some(address)
}
