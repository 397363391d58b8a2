//! The keys of an actor: `[defaults]` and `[actors.NAME]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use reflowd_hot_reload::{ActorSpec, ModuleRef, Template, WaitSpec};
use reflowd_loader::ModuleUrl;
use reflowd_runtime::{
    ActorName, Digest, EnginePer, GuestErrors, Persistence, PortRef, SendMode, TrialRules, Trigger,
};
use serde_json::{Map, Value};
use toml::de::DeValue;

use super::{
    Parsing,
    daemon::{is_exposed, set},
    environment::normal,
    reader::{Item, Table},
    report::{Diagnostic, Place},
    wire::OVERFLOW,
};

/// The connector whose routes wait for ports of other actors.
const HTTP_IN: &str = "http-in";

/// The keys that make no sense for more than one actor.
const OWN_KEYS: [&str; 5] = ["module", "version", "config", "env", "was"];

/// What `[defaults]` says, and each actor starts from.
#[derive(Clone, Default)]
pub(super) struct Defaults(pub(super) Template);

impl Defaults {
    /// Reads `[defaults]`.
    pub(super) fn read(&mut self, mut table: Table<'_>) {
        for key in OWN_KEYS {
            if let Some(item) = table.get(key) {
                item.refuse::<()>("E0102", format!("`{key}` cannot be a default"), |d| {
                    d.at(&item.key_place, "belongs to one actor")
                        .help("write it in that actor's table, `[actors.NAME]`")
                });
            }
        }
        self.shared(&mut table);
        table.finish();
    }

    /// Reads the keys that `[defaults]` and an actor have in common.
    fn shared(&mut self, table: &mut Table<'_>) {
        let Template { settings, keys } = &mut self.0;
        set(&mut settings.timeout, table.duration("timeout"));
        if let Some(messages) = table.integer("mailbox", 1..=1 << 24) {
            settings.mailbox = usize::try_from(messages).expect("at most 2^24");
        }
        set(&mut settings.mailbox_bytes, table.size("mailbox_bytes", 1..=1 << 40));
        set(&mut settings.overflow, table.choice("overflow", &OVERFLOW));
        let triggers = [("any", Trigger::Any), ("all", Trigger::All)];
        set(&mut settings.trigger, table.choice("trigger", &triggers));
        let sends = [("on-success", SendMode::OnSuccess), ("now", SendMode::Now)];
        set(&mut settings.send, table.choice("send", &sends));
        set(&mut settings.retries, count(table, "retries", 0, 1000));
        set(&mut settings.retries_timeout, count(table, "retries_timeout", 0, 1000));
        set(&mut settings.output, table.size("output", 1..=1 << 32));
        set(&mut settings.state_size, table.size("state_size", 2..=1 << 32));
        set(&mut settings.host_memory, table.size("host_memory", 1 << 20..=1 << 36));
        let states = [("snapshot", Persistence::Snapshot), ("memory", Persistence::Memory)];
        set(&mut settings.state, table.choice("state", &states));
        set(&mut settings.log_rate, count(table, "log_rate", 0, 1_000_000));
        set(&mut settings.context_state, table.boolean("context_state"));
        set(&mut settings.context_meta, table.boolean("context_meta"));
        set(&mut settings.max_hops, count(table, "max_hops", 1, u32::MAX));
        if let Some(item) = table.get("trial") {
            settings.trial = trial(&item, settings.trial);
        }

        set(&mut keys.memory, table.size("memory", 1 << 16..=1 << 32));
        let lives = [("actor", EnginePer::Actor), ("message", EnginePer::Message)];
        set(&mut keys.engine_per, table.choice("engine_per", &lives));
        if let Some(item) = table.get("entry_point") {
            keys.entry_point = entry_point(&item).or(keys.entry_point.take());
        }
        if let Some(hosts) = table.strings("allow_hosts") {
            keys.allow_hosts = hosts.iter().filter_map(|(item, text)| host(item, text)).collect();
        }
    }
}

fn count(table: &mut Table<'_>, key: &'static str, least: u32, most: u32) -> Option<u32> {
    let number = table.integer(key, least.into()..=most.into())?;
    Some(u32::try_from(number).expect("the range is one of u32"))
}

/// What a new generation has to prove, starting from what the defaults say of it.
fn trial(item: &Item<'_>, before: Option<TrialRules>) -> Option<TrialRules> {
    if matches!(item.value, DeValue::Boolean(false)) {
        return None;
    }
    let mut rules = before.unwrap_or_default();
    if matches!(item.value, DeValue::Boolean(true)) {
        return Some(rules);
    }
    let expected = "`false`, or a table such as `{ turns = 1000, time = \"60s\" }`";
    let Some(mut table) = item.table("trial".into(), expected) else { return Some(rules) };
    set(&mut rules.turns, count(&mut table, "turns", 1, u32::MAX));
    set(&mut rules.time, table.duration("time"));
    set(&mut rules.max_failures, count(&mut table, "max_failures", 1, u32::MAX));
    let errors = [("count", GuestErrors::Count), ("ignore", GuestErrors::Ignore)];
    set(&mut rules.guest_errors, table.choice("guest_errors", &errors));
    table.finish();
    Some(rules)
}

fn entry_point(item: &Item<'_>) -> Option<String> {
    let text = item.string("the name of an export, in quotes")?;
    if !text.is_empty() {
        return Some(text.to_owned());
    }
    item.refuse("E0104", "`entry_point` is empty", |d| {
        d.at(&item.place, "must name an export").help("leave the key out for `process`")
    })
}

pub(super) fn host(item: &Item<'_>, text: &str) -> Option<String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let address = name.parse::<std::net::IpAddr>().is_ok();
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text == "*" || address || (!name.is_empty() && name.chars().all(plain)) {
        return Some(text.to_owned());
    }
    item.refuse("E0104", format!("`{text}` is no host"), |d| {
        d.at(&item.place, "must be a host's name alone")
            .help("write \"api.example.com\", \"*.example.com\", or \"*\" for every host")
    })
}

impl Parsing<'_> {
    /// Reads the actors of one file.
    pub(super) fn actors(&mut self, top: &mut Table<'_>) {
        let Some(table) = top.table("actors") else { return };
        for item in table.items() {
            self.actor(&item);
        }
    }

    fn actor(&mut self, item: &Item<'_>) {
        let name = match item.key.parse::<ActorName>() {
            Ok(name) => name,
            Err(error) => {
                item.refuse::<()>("E0106", error.to_string(), |d| {
                    d.at(&item.key_place, "not a name for an actor")
                });
                return;
            }
        };
        if let Some(first) = self.config.places.actors.get(&name) {
            self.problems.add(defined_twice(&item.key, &item.key_place, Some(first)));
            return;
        }
        self.config.places.actors.insert(name.clone(), item.key_place.clone());
        let called = format!("actors.{name}");
        let expected = format!("a table: write `[{called}]` and its keys below");
        let Some(mut table) = item.table(called, &expected) else { return };
        for item in table.items() {
            let key = (name.clone(), item.key);
            self.config.places.actor_keys.insert(key, item.place);
        }

        let mut own = self.defaults.clone();
        own.shared(&mut table);
        let Defaults(Template { settings, mut keys }) = own;
        let module = match table.get("module") {
            Some(module) => self.module(&module),
            None => item.refuse("E0105", format!("the actor `{name}` has no `module`"), |d| {
                d.at(&item.key_place, "what does it run?").help(
                    "add `module = \"…\"`: the name of a file in the modules folder without `.wasm`, a path, or a connector such as \"std:interval\"",
                )
            }),
        };
        let version = table.get("version").and_then(|item| version(&item));
        let was = table.get("was").and_then(|item| former_name(&item, &name));
        let config = table.get("config");
        keys.config = config.as_ref().and_then(module_config).unwrap_or_default();
        if let Some(env) = table.table("env") {
            let (values, secrets) = self.env(&name, &env);
            keys.env = values;
            if !secrets.is_empty() {
                self.config.secrets.insert(name.clone(), secrets);
            }
            // A holder of the token may send.
            let is_door = matches!(&module, Some(ModuleRef::Builtin { name }) if name == HTTP_IN);
            let token = keys.config.get("token").filter(|_| is_door).and_then(Value::as_str);
            if let Some(token) = token.and_then(|token| env.items().find(|item| item.key == token))
            {
                is_exposed(&token);
            }
        }
        table.finish();
        let Some(module) = module else { return };
        if let ModuleRef::Builtin { name: connector } = &module {
            from_folder(&mut keys.config, item);
            if connector == HTTP_IN {
                for (port, place) in config.iter().flat_map(waits) {
                    let origin = self.sources.origin(&place);
                    self.config.flow.waits.push(WaitSpec { actor: name.clone(), port, origin });
                    self.config.places.waits.push(place);
                }
            }
        }
        let origin = self.sources.origin(&item.key_place);
        let spec = ActorSpec { module, keys, settings, version, was, origin };
        self.config.flow.actors.insert(name, spec);
    }

    fn module(&self, item: &Item<'_>) -> Option<ModuleRef> {
        let expected = "the name of a module in quotes, `{ file = \"…\", sha256 = \"…\" }`, or the same with `url`";
        if let DeValue::String(text) = item.value {
            return self.module_name(item, text, None);
        }
        let mut table = item.table("module".into(), expected)?;
        let (file, url) = (table.get("file"), table.get("url"));
        let pin = table.get("sha256").map(|item| digest(&item));
        table.finish();
        if let Some(url) = url {
            return download(item, &url, file.as_ref(), pin);
        }
        let Some(file) = file else {
            return item.refuse("E0105", "this module has no `file` and no `url`", |d| {
                d.at(&item.place, "").help("add `file = \"…\"`, or `url = \"…\"`")
            });
        };
        let text = file.string("the name of a module, in quotes")?;
        match pin {
            Some(pin) => self.module_name(&file, text, Some(pin?)),
            None => self.module_name(&file, text, None),
        }
    }

    fn module_name(&self, item: &Item<'_>, text: &str, pin: Option<Digest>) -> Option<ModuleRef> {
        if let Some(name) = text.strip_prefix("std:") {
            if pin.is_some() {
                return item.refuse("E0104", "a connector has no digest", |d| {
                    d.at(&item.place, "part of the daemon")
                        .help(format!("write `module = \"{text}\"`"))
                });
            }
            return Some(ModuleRef::Builtin { name: name.to_owned() });
        }
        if text.contains("://") {
            return no_digest(item, text);
        }
        if text.is_empty() || text.contains('\0') {
            return item.refuse("E0104", "`module` names nothing", |d| {
                d.at(&item.place, "must name a file in the modules folder, or a path")
            });
        }
        if text.contains('/') || text.ends_with(".wasm") {
            let folder = item.place.file.parent().unwrap_or(Path::new("/"));
            return Some(ModuleRef::Path { path: normal(&folder.join(text)), pin });
        }
        Some(ModuleRef::Stem { stem: text.to_owned(), pin })
    }

    /// The values of `env`, and the names of those that are secret.
    fn env(
        &mut self,
        actor: &ActorName,
        table: &Table<'_>,
    ) -> (BTreeMap<String, String>, BTreeSet<String>) {
        let mut values = BTreeMap::new();
        let mut secrets = BTreeSet::new();
        for item in table.items() {
            let value = match item.value {
                DeValue::String(text) => Some(text.to_string()),
                DeValue::Table(_) => {
                    secrets.insert(item.key.clone());
                    self.reference(&item)
                }
                _ => not_text(&item),
            };
            match value {
                Some(value) => _ = values.insert(item.key, value),
                None => _ = self.config.places.unread.insert(actor.clone()),
            }
        }
        (values, secrets)
    }

    /// The value that `{ credential = … }`, `{ file = … }` or `{ env = … }` stands for.
    pub(super) fn reference(&mut self, item: &Item<'_>) -> Option<String> {
        let mut table = item.table(item.key.clone(), "a table")?;
        let credential = table.get("credential");
        let file = table.get("file");
        let variable = table.get("env");
        table.finish();
        match (credential, file, variable) {
            (Some(name), None, None) => self.credential(&name),
            (None, Some(file), None) => {
                let text = file.string("a path in quotes")?;
                let folder = file.place.file.parent().unwrap_or(Path::new("/"));
                self.secret_file(&file, normal(&folder.join(text)))
            }
            (None, None, Some(variable)) => {
                let name = variable.string("the name of a variable, in quotes")?;
                let value = self.environment.vars.get(name);
                let Some(value) = value.and_then(|value| value.to_str()) else {
                    let message = format!("the daemon's environment has no text in `{name}`");
                    return variable.refuse("E0110", message, |d| {
                        d.at(&variable.place, "not set").help(
                            "set it where the daemon is started: `Environment=` in its systemd unit",
                        )
                    });
                };
                Some(value.to_owned())
            }
            _ => item.refuse("E0104", format!("`{}` must come from one place", item.key), |d| {
                d.at(&item.place, "must have exactly one of `credential`, `file` and `env`")
            }),
        }
    }

    fn credential(&mut self, item: &Item<'_>) -> Option<String> {
        let name = item.string("the name of a credential, in quotes")?;
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return item.refuse("E0104", format!("`{name}` cannot name a credential"), |d| {
                d.at(&item.place, "must be the name of a file, without a folder")
            });
        }
        let Some(folder) = self.environment.folder("CREDENTIALS_DIRECTORY") else {
            let message = format!("the credential `{name}` cannot be read");
            return item.refuse("E0110", message, |d| {
                d.at(&item.place, "$CREDENTIALS_DIRECTORY is not set").help(format!(
                    "add `LoadCredential={name}:/path/to/it` to the systemd unit, or use `{{ file = \"…\" }}`"
                ))
            });
        };
        self.secret_file(item, folder.join(name))
    }

    fn secret_file(&mut self, item: &Item<'_>, path: PathBuf) -> Option<String> {
        let read = self.environment.read_secret(&path);
        let stranger = self.stranger(&path);
        self.config.secret_files.insert(path.clone());
        if let (Ok(_), Some(stranger)) = (&read, stranger) {
            let message = format!("`{}` {stranger}", path.display());
            return item.refuse("E0110", message, |d| d.at(&item.place, "needed here"));
        }
        match read {
            Ok(text) => Some(text),
            Err(error) => {
                item.refuse("E0110", error.to_string(), |d| d.at(&item.place, "needed here"))
            }
        }
    }

    /// Reports downloads from hosts that may not be asked.
    pub(super) fn download_hosts(&mut self) {
        let config = &*self.config;
        for (name, spec) in &config.flow.actors {
            let ModuleRef::Url { url, .. } = &spec.module else { continue };
            if config.daemon.downloads.allow(url) {
                continue;
            }
            let message = format!("the host of `{url}` is not in `download_hosts`");
            let problem = config.actor_error(name, "module", "E0104", message);
            self.problems.add(
                problem
                    .at_some(config.places.keys.get("daemon.download_hosts"), "the hosts that are")
                    .help("add the host there, and restart the daemon"),
            );
        }
    }

    /// Reports former names that are still, or twice, in use.
    pub(super) fn former_names(&mut self) {
        let mut takers: BTreeMap<&ActorName, &ActorName> = BTreeMap::new();
        let config = &*self.config;
        for (name, spec) in &config.flow.actors {
            let Some(was) = &spec.was else { continue };
            let key = |name: &ActorName| (name.clone(), "was".to_owned());
            let place = config.places.actor_keys.get(&key(name));
            if let Some(other) = config.places.actors.get(was) {
                let message = format!("`{name}` was `{was}`, and there still is an actor `{was}`");
                self.problems.add(
                    Diagnostic::error("E0111", message)
                        .at_some(place, "takes over its mailbox and state")
                        .at(other, "which this one still uses")
                        .help("remove the former actor, or the key `was`"),
                );
            }
            if let Some(other) = takers.insert(was, name) {
                let message = format!("both `{other}` and `{name}` were `{was}`");
                self.problems.add(
                    Diagnostic::error("E0111", message)
                        .at_some(place, "only one can take over its mailbox and state")
                        .at_some(config.places.actor_keys.get(&key(other)), "the other"),
                );
            }
        }
    }
}

/// The problem of an actor that is defined in two places.
pub(super) fn defined_twice(name: &str, again: &Place, first: Option<&Place>) -> Diagnostic {
    Diagnostic::error("E0107", format!("the actor `{name}` is defined twice"))
        .at(again, "here again")
        .at_some(first, "first here")
        .help("remove one of them, or give it another name")
}

/// A module behind a URL; `pin` is what became of its digest.
fn download(
    item: &Item<'_>,
    url: &Item<'_>,
    file: Option<&Item<'_>>,
    pin: Option<Option<Digest>>,
) -> Option<ModuleRef> {
    if let Some(file) = file {
        return item.refuse("E0104", "a module comes from one place", |d| {
            d.at(&url.place, "from here")
                .at(&file.place, "or from here?")
                .help("remove one of them")
        });
    }
    let text = url.string("a URL in quotes")?;
    let url = match text.parse::<ModuleUrl>() {
        Ok(parsed) => parsed,
        Err(error) => {
            return url.refuse("E0104", error.to_string(), |d| {
                d.at(&url.place, "no module can come from there")
            });
        }
    };
    match pin {
        Some(sha256) => Some(ModuleRef::Url { url, sha256: sha256? }),
        None => no_digest(item, text),
    }
}

fn no_digest<T>(item: &Item<'_>, url: &str) -> Option<T> {
    // A query may hold a token.
    let url = url.split('?').next().unwrap_or_default();
    item.refuse("E0105", "a module from a URL needs its `sha256`", |d| {
        d.at(&item.place, "whatever a server gives out would run").help(format!(
            "write `module = {{ url = \"{url}\", sha256 = \"…\" }}`; `reflowd inspect {url}` shows the digest"
        ))
    })
}

fn digest(item: &Item<'_>) -> Option<Digest> {
    let text = item.string("64 hexadecimal digits, in quotes")?;
    match text.parse() {
        Ok(digest) => Some(digest),
        Err(_) => item.refuse("E0104", "`sha256` is no digest", |d| {
            d.at(&item.place, "must be 64 hexadecimal digits")
                .help("`sha256sum FILE` and `reflowd inspect FILE` show it")
        }),
    }
}

fn version(item: &Item<'_>) -> Option<String> {
    let text = item.string("a version requirement in quotes, such as \">=1.2, <2\"")?;
    match semver::VersionReq::parse(text) {
        Ok(_) => Some(text.to_owned()),
        Err(error) => item.refuse("E0104", format!("`version` cannot be read: {error}"), |d| {
            d.at(&item.place, "not a version requirement")
                .help("write one such as \"1.2\", \"=1.2.3\" or \">=1.2, <2\"")
        }),
    }
}

fn former_name(item: &Item<'_>, now: &ActorName) -> Option<ActorName> {
    let text = item.string("an actor's former name, in quotes")?;
    match text.parse::<ActorName>() {
        Ok(was) if was == *now => item.refuse("E0111", format!("`{now}` was itself"), |d| {
            d.at(&item.place, "the same name").help("remove the key")
        }),
        Ok(was) => Some(was),
        Err(error) => item
            .refuse("E0106", error.to_string(), |d| d.at(&item.place, "not a name for an actor")),
    }
}

fn not_text<T>(item: &Item<'_>) -> Option<T> {
    let help = match item.value {
        DeValue::Integer(number) => format!("write a string: \"{number}\""),
        DeValue::Float(number) => format!("write a string: \"{number}\""),
        DeValue::Boolean(truth) => format!("write a string: \"{truth}\""),
        _ => "write a string".to_owned(),
    };
    let found = super::reader::kind(item.value);
    item.refuse(
        "E0103",
        format!("`{}` is {found}, and values in `env` are strings", item.key),
        |d| d.at(&item.place, format!("this is {found}")).help(help),
    )
}

/// The ports that routes of `std:http-in` wait for. What cannot be one is for the connector to
/// refuse.
fn waits(config: &Item<'_>) -> Vec<(PortRef, Place)> {
    let DeValue::Table(table) = config.value else { return Vec::new() };
    let routes = table.get("routes").and_then(|routes| routes.get_ref().as_array());
    let waits = routes.into_iter().flatten().filter_map(|route| {
        let wait = route.get_ref().as_table()?.get("wait")?;
        let place = Place { file: Arc::clone(&config.place.file), span: wait.span() };
        Some((wait.get_ref().as_str()?.parse().ok()?, place))
    });
    waits.collect()
}

/// Takes a connector's `path` from the folder of the file in which it stands. What a module makes
/// of a path is its own matter.
fn from_folder(config: &mut Map<String, Value>, item: &Item<'_>) {
    // An empty one would become the folder; the connector says that it is empty.
    if let Some(Value::String(path)) = config.get_mut("path")
        && !path.is_empty()
    {
        let folder = item.place.file.parent().unwrap_or(Path::new("/"));
        // Text joined to text is text, unless the folder's own name is none.
        if let Ok(absolute) = normal(&folder.join(&*path)).into_os_string().into_string() {
            *path = absolute;
        }
    }
}

/// The configuration of a module, as the JSON that the module gets.
fn module_config(item: &Item<'_>) -> Option<Map<String, Value>> {
    let table =
        item.table("config".into(), "a table: what the module gets as its configuration")?;
    Some(table.items().filter_map(|item| Some((item.key.clone(), json(&item)?))).collect())
}

/// A value as JSON. What JSON does not have is reported.
fn json(item: &Item<'_>) -> Option<Value> {
    Some(match item.value {
        DeValue::String(text) => text.to_string().into(),
        DeValue::Boolean(truth) => (*truth).into(),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Integer(text) => {
            let number = i128::from_str_radix(text.as_str(), text.radix()).ok();
            let signed = number.and_then(|n| i64::try_from(n).ok()).map(Value::from);
            let unsigned = || number.and_then(|n| u64::try_from(n).ok()).map(Value::from);
            return signed.or_else(unsigned).or_else(|| {
                item.refuse("E0104", "this number is too large", |d| {
                    d.at(&item.place, "does not fit 64 bits").help("write it as a string")
                })
            });
        }
        DeValue::Float(text) => {
            let number = text.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            return number.map(Value::Number).or_else(|| {
                item.refuse(
                    "E0104",
                    format!("`{}` is a number that JSON does not have", item.key),
                    |d| {
                        d.at(&item.place, "cannot be given to the module")
                            .help("write it as a string")
                    },
                )
            });
        }
        DeValue::Array(_) => item.list().iter().filter_map(json).collect::<Vec<_>>().into(),
        DeValue::Table(_) => {
            let table = item.table(item.key.clone(), "a table")?;
            let items = table.items();
            Value::Object(items.filter_map(|i| Some((i.key.clone(), json(&i)?))).collect())
        }
    })
}
