//! `std:http-in`: what is sent to an address, as messages.
//!
//! A door of its own, apart from the admin API: whoever may send here may not operate. Each
//! route leads to an outport, and what comes in by it is offered to the wires of that port:
//! all of them take it, or none does and the sender is told to come again. An answer comes at
//! once (202: it is in the mailboxes of all that the port is wired to), or, with `wait`, when
//! what the flow makes of it leaves by another port. From then on a message is like any
//! other: it survives swaps, restarts of actors and a stop of the daemon, and not a crash.
//!
//! The address belongs to the actor and not to a generation of it: routes and tokens can be
//! edited while connections stay open. `place.rs` has the address and its connections,
//! `request.rs` what is done about one request.

mod place;
mod request;
mod bucket;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::Method;
use parking_lot::Mutex;
use reflowd_runtime::{
    Digest, Emitter, Metadata, Port, PortName, PortRef, Source, SourceError, System, Type,
};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

pub(crate) use place::Listeners;

use self::{bucket::Bucket, place::Place};
use super::{Builtin, Prepared, Setting, sink::What};
use crate::admin::usable_token;

/// The largest body unless the configuration says otherwise.
const MAX_BODY: u64 = 1 << 20;

/// The largest that it can say: as much as one turn may put out.
const MOST_BODY: u64 = 16 << 20;

/// How long a sender waits for an answer unless its route says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest that one can wait.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// The lowest rate that can be asked for, in requests a second: one in eleven days.
const LOWEST_RATE: f64 = 1e-6;

/// The highest rate that can be asked for, in requests a second.
const HIGHEST_RATE: f64 = 1e6;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The address, such as `127.0.0.1:8080`.
    listen: String,
    /// The name in the actor's `env` of what senders have to show.
    token: Option<String>,
    /// Where what comes in goes.
    routes: Vec<RouteConfig>,
    /// The largest body, packed or not.
    max_body: Option<Size>,
    /// Types of bodies that are JSON by another name.
    #[serde(default)]
    content_types: Vec<String>,
    /// Requests a second, of all senders together; more are told to come again.
    rate: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteConfig {
    /// `POST`, `PUT` or `PATCH`.
    #[serde(default = "post")]
    method: String,
    /// The path, exactly.
    path: String,
    /// The outport.
    port: PortName,
    /// `ACTOR.PORT`: where the answer comes out.
    wait: Option<String>,
    /// How long it may take.
    timeout: Option<String>,
    /// What a body is data of.
    r#type: Option<String>,
    /// What of the answer is given.
    #[serde(default)]
    what: What,
}

fn post() -> String {
    "POST".into()
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`max_body` is a size: \"64 KiB\" or 65536")]
enum Size {
    Bytes(u64),
    Text(String),
}

/// What the connector says of itself with these ports.
pub(super) fn metadata(outports: &[Port]) -> Metadata {
    Metadata {
        component: "std:http-in".into(),
        description: "takes HTTP requests and puts out their bodies".into(),
        inports: Vec::new(),
        outports: outports.to_vec(),
        config_schema: Some(json!({
            "type": "object",
            "properties": {
                "listen": { "type": "string", "description": "the address, such as 127.0.0.1:8080; one that others can reach needs a token" },
                "token": { "type": "string", "description": "the name in the actor's env of what senders have to show as `Authorization: Bearer`" },
                "routes": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "properties": {
                            "method": { "enum": ["POST", "PUT", "PATCH"], "default": "POST" },
                            "path": { "type": "string", "description": "the path, exactly" },
                            "port": { "type": "string", "description": "the outport by which bodies leave" },
                            "wait": { "type": "string", "description": "ACTOR.PORT: the sender is answered with what leaves there" },
                            "timeout": { "type": "string", "default": "30s", "description": "how long the answer may take" },
                            "type": { "type": "string", "description": "what bodies are data of; what they look like where it is not set" },
                            "what": What::schema(),
                        },
                        "required": ["path", "port"],
                        "additionalProperties": false,
                    },
                },
                "max_body": { "type": ["string", "integer"], "default": "1 MiB", "description": "the largest body, packed or not, up to 16 MiB" },
                "content_types": {
                    "type": "array",
                    "items": { "type": "string" },
                    "description": "types of bodies that are read as JSON, such as text/plain, beside application/json and those that end with +json",
                },
                "rate": { "type": "number", "description": "requests a second of all senders together" },
            },
            "required": ["listen", "routes"],
            "additionalProperties": false,
        })),
        version: None,
    }
}

/// The same with the ports that a configuration names, if it is one.
pub(super) fn metadata_with(config: &Config) -> Option<Metadata> {
    let routes = config.routes.iter().map(Route::new).collect::<Result<Vec<_>, _>>().ok()?;
    Some(metadata(&outports(&routes)))
}

pub(super) fn prepare(
    builtin: Builtin,
    config: Config,
    setting: &Setting<'_>,
) -> Result<Prepared, String> {
    let address: SocketAddr = config.listen.parse().map_err(|_| {
        format!("`listen` is {}; it is an address such as 127.0.0.1:8080", config.listen)
    })?;
    let token = config.token.as_ref().map(|name| {
        let value = setting.keys.env.get(name).ok_or_else(|| no_such_value(&setting.keys.env))?;
        let value = usable_token(value).map_err(|why| format!("the token `{name}` {why}"))?;
        Ok::<_, String>(Token(Sha256::digest(value).into()))
    });
    let token = token.transpose()?;
    if token.is_none() && !address.ip().is_loopback() {
        return Err(format!(
            "`listen` is {address}, which others can reach: set a `token`, or a loopback address"
        ));
    }
    let routes = config.routes.iter().map(Route::new).collect::<Result<Vec<_>, _>>()?;
    if routes.is_empty() {
        return Err("`routes` is empty: nothing could ever come in".into());
    }
    for (n, route) in routes.iter().enumerate() {
        let mut before = routes[..n].iter();
        if before.any(|other| other.path == route.path && other.method == route.method) {
            return Err(format!("two routes are {} {}", route.method, route.path));
        }
    }
    let max_body = match config.max_body {
        None => Some(MAX_BODY),
        Some(Size::Bytes(bytes)) => Some(bytes),
        Some(Size::Text(text)) => text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
    };
    let max_body = max_body
        .filter(|size| (1..=MOST_BODY).contains(size))
        .ok_or("`max_body` is a size from 1 byte to 16 MiB, such as \"64 KiB\"")?;
    let content_types = config.content_types.iter().map(|text| content_type(text));
    let content_types = content_types.collect::<Result<Vec<_>, _>>()?;
    let rate = match config.rate {
        Some(rate) if (LOWEST_RATE..=HIGHEST_RATE).contains(&rate) => {
            Some(Mutex::new(Bucket::new(rate)))
        }
        None => None,
        Some(_) => {
            return Err(format!(
                "`rate` is requests a second, from {LOWEST_RATE} to {HIGHEST_RATE}"
            ));
        }
    };
    let door = Door {
        metadata: metadata(&outports(&routes)),
        token,
        routes,
        max_body: usize::try_from(max_body).map_err(|_| "`max_body` is too large")?,
        content_types,
        rate,
        system: setting.services.system.clone(),
    };
    Ok(Prepared::Source(Arc::new(HttpIn {
        digest: builtin.digest(),
        door: Arc::new(door),
        place: setting.services.listeners.place(setting.actor, address),
    })))
}

/// What to say of a `token` that names no value. It may be the token itself, so it is not shown.
fn no_such_value(env: &BTreeMap<String, String>) -> String {
    let names: Vec<_> = env.keys().map(|name| format!("`{name}`")).collect();
    let has = match names.is_empty() {
        true => "is empty".to_owned(),
        false => format!("has {}", names.join(", ")),
    };
    format!("`token` is the name of a value in the actor's `env`, which {has}")
}

/// A media type as requests are compared with it: in small letters.
fn content_type(text: &str) -> Result<String, String> {
    let is_name = |name: &str| {
        let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
        !name.is_empty() && name.bytes().all(is_of_name)
    };
    match text.split_once('/') {
        Some((kind, name)) if is_name(kind) && is_name(name) => Ok(text.to_ascii_lowercase()),
        _ => Err(format!(
            "`content_types` has {text}; it has types without parameters, such as text/plain"
        )),
    }
}

/// The ports of routes, each once. Routes of other types to one port make it take any.
fn outports(routes: &[Route]) -> Vec<Port> {
    let mut ports: BTreeMap<&PortName, Type> = BTreeMap::new();
    for route in routes {
        let ty = route.ty.unwrap_or(Type::Any);
        let entry = ports.entry(&route.port).or_insert(ty);
        if *entry != ty {
            *entry = Type::Any;
        }
    }
    let port = |(name, port_type): (&PortName, Type)| {
        let through = routes.iter().filter(|route| route.port == *name);
        let through: Vec<_> =
            through.map(|route| format!("{} {}", route.method, route.path)).collect();
        let description = format!("bodies of {}", through.join(", "));
        Port { name: name.clone(), description, port_type, required: false }
    };
    ports.into_iter().map(port).collect()
}

/// Everything by which requests are answered: what an edit of the configuration changes.
struct Door {
    metadata: Metadata,
    token: Option<Token>,
    routes: Vec<Route>,
    /// Bytes.
    max_body: usize,
    /// Media types in small letters.
    content_types: Vec<String>,
    rate: Option<Mutex<Bucket>>,
    /// Forgets the answers that nobody waits for any more.
    system: System,
}

/// From a method and a path to an outport.
struct Route {
    method: Method,
    path: String,
    port: PortName,
    /// Where the answer comes out, and how long that may take.
    wait: Option<(PortRef, Duration)>,
    ty: Option<Type>,
    what: What,
}

impl Route {
    fn new(config: &RouteConfig) -> Result<Self, String> {
        let path = &config.path;
        let here = |why: &str| format!("the route `{path}`: {why}");
        if !path.starts_with('/') || path.contains(['?', '#', ' ']) {
            return Err(here("a path begins with `/` and has no `?`, `#` or space"));
        }
        let method = match config.method.as_str() {
            "POST" => Method::POST,
            "PUT" => Method::PUT,
            "PATCH" => Method::PATCH,
            _ => return Err(here("`method` is POST, PUT or PATCH")),
        };
        let ty = match &config.r#type {
            None => None,
            Some(name) => Some(
                Type::from_name(name).ok_or_else(|| here(&format!("there is no type `{name}`")))?,
            ),
        };
        let timeout = match (&config.timeout, &config.wait) {
            (None, _) => TIMEOUT,
            (Some(_), None) => return Err(here("`timeout` is for what it would `wait` for")),
            (Some(text), Some(_)) => humantime::parse_duration(text)
                .ok()
                .filter(|timeout| !timeout.is_zero() && *timeout <= LONGEST_TIMEOUT)
                .ok_or_else(|| here("`timeout` is a duration such as 10s, an hour at most"))?,
        };
        let wait = match &config.wait {
            None => None,
            Some(text) => {
                let port: PortRef =
                    text.parse().map_err(|_| here("`wait` is an outport, as in \"actor.port\""))?;
                Some((port, timeout))
            }
        };
        let (path, port) = (path.clone(), config.port.clone());
        Ok(Self { method, path, port, wait, ty, what: config.what })
    }
}

/// What senders have to show, as its digest: comparing digests tells nobody by the time that
/// it takes how much of a guess was right.
struct Token([u8; 32]);

impl Token {
    fn is(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.iter().zip(shown).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

struct HttpIn {
    digest: Digest,
    door: Arc<Door>,
    place: Arc<Place>,
}

impl Source for HttpIn {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn metadata(&self) -> &Metadata {
        &self.door.metadata
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let settling = out.clone();
            tokio::select! {
                error = self.place.serve(Arc::clone(&self.door), out) => Err(error),
                () = settling.settle() => unreachable!("it settles for ever"),
            }
        })
    }
}

#[cfg(test)]
mod tests;
