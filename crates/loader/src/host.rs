//! What a guest finds around it: its configuration, variables, log and turn.
//!
//! An engine translates the ABI's handles into bytes and asks here; nothing here
//! knows an engine. One [`Host`] lives as long as one engine.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use reflowd_runtime::{ActorLog, HOST_MEMORY, ProgramSpec, TurnTrace};
use serde_json::Value;
use thiserror::Error;
use tracing::{Level, level_filters::LevelFilter};

use crate::{
    account::{Account, OverHostMemory},
    http::{self, Answer, HttpError},
    turn::Side,
};

/// Bytes that one engine's variables may take, names included.
const MAX_VARS: usize = 1 << 20;

/// Bytes that a variable takes beside its name and its value.
const VAR: usize = 128;

/// Why a variable is not set. The guest breaks with it.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SetVarError {
    /// All of them together are too large.
    #[error("var_set: the variables are over 1 MiB")]
    TooMany,
    /// The host holds as much for the actor as it may.
    #[error("var_set: {0}")]
    NoRoom(#[from] OverHostMemory),
}

/// What a guest breaks with that wants a turn's things outside of one.
pub(crate) const NO_TURN: &str = "outputs and state exist only within a turn";

/// What stays the same for every engine of one program.
pub(crate) struct Surroundings {
    /// The `config` object of the context, encoded.
    pub(crate) context_config: Bytes,
    /// What `config_get` answers: strings as they are, anything else as JSON.
    config: BTreeMap<String, String>,
    allow_hosts: Vec<String>,
    log: Option<ActorLog>,
}

impl Surroundings {
    /// For a module that is only looked at.
    pub(crate) fn none() -> Self {
        Self {
            context_config: Bytes::from_static(b"{}"),
            config: BTreeMap::new(),
            allow_hosts: Vec::new(),
            log: None,
        }
    }

    /// For an actor's module, which calls itself `component`.
    pub(crate) fn of(spec: &ProgramSpec, component: &str) -> Self {
        let context_config = serde_json::json!({
            "node_id": spec.actor,
            "component": component,
            "resolved_env": spec.env,
            "config": spec.config,
            "namespace": null,
        });
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Self {
            context_config: context_config.to_string().into(),
            config: spec.config.iter().map(|(key, value)| (key.clone(), text(value))).collect(),
            allow_hosts: spec.allow_hosts.clone(),
            log: Some(spec.log.clone()),
        }
    }

    /// The value of a key of the actor's configuration.
    pub(crate) fn config(&self, key: &[u8]) -> Option<&str> {
        self.config.get(std::str::from_utf8(key).ok()?).map(String::as_str)
    }

    /// Makes an HTTP request where the operator allows it. Blocks.
    pub(crate) fn http(
        &self,
        request: &[u8],
        body: &[u8],
        trace: Option<&TurnTrace>,
        deadline: Instant,
    ) -> Result<Answer, HttpError> {
        http::request(request, body, trace, &self.allow_hosts, deadline)
    }
}

/// The host of one engine.
pub(crate) struct Host {
    pub(crate) around: Arc<Surroundings>,
    /// All that is held for the actor while a call goes on.
    pub(crate) account: Account,
    vars: BTreeMap<Vec<u8>, Bytes>,
    vars_size: usize,
    /// What the last HTTP request brought.
    pub(crate) http_status: u16,
    pub(crate) http_headers: Bytes,
    /// The turn that goes on; none while the guest is asked about itself.
    pub(crate) side: Option<Side>,
    /// When the call that goes on must have ended.
    pub(crate) deadline: Instant,
}

impl Host {
    pub(crate) fn new(around: Arc<Surroundings>) -> Self {
        Self {
            around,
            account: Account::new(HOST_MEMORY),
            vars: BTreeMap::new(),
            vars_size: 0,
            http_status: 0,
            http_headers: Bytes::from_static(b"{}"),
            side: None,
            deadline: Instant::now(),
        }
    }

    /// Begins a call in which so many bytes may be held, of which `given` are there.
    pub(crate) fn begin(&mut self, limit: u64, given: u64) {
        let lasting = (self.vars_size + self.vars.len() * VAR + self.http_headers.len()) as u64;
        self.account.begin(limit, lasting + given);
    }

    pub(crate) fn config(&self, key: &[u8]) -> Option<&str> {
        self.around.config(key)
    }

    pub(crate) fn var(&self, key: &[u8]) -> Option<Bytes> {
        self.vars.get(key).cloned()
    }

    /// Sets a variable, or removes it, which always works.
    ///
    /// # Errors
    /// There is no room for it.
    pub(crate) fn set_var(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), SetVarError> {
        let old = self.vars.get(key).map(|old| key.len() + old.len());
        let new = value.map(|new| key.len() + new.len());
        let size = self.vars_size - old.unwrap_or(0) + new.unwrap_or(0);
        if size > MAX_VARS {
            return Err(SetVarError::TooMany);
        }
        if let Some(new) = new {
            self.account.take((new + VAR) as u64)?;
        }
        if let Some(old) = old {
            self.account.give_back((old + VAR) as u64);
        }
        self.vars_size = size;
        match value {
            Some(value) => self.vars.insert(key.into(), Bytes::copy_from_slice(value)),
            None => self.vars.remove(key),
        };
        Ok(())
    }

    pub(crate) fn log(&self, level: Level, text: &[u8]) {
        if let Some(log) = &self.around.log {
            log.line(level, text);
        }
    }

    /// Makes an HTTP request where the operator allows it. What is refused or
    /// fails is told to the guest as status 0 and an empty body, and logged.
    pub(crate) fn http(&mut self, request: &[u8], body: &[u8]) -> Bytes {
        let trace = self.trace();
        let answer = self
            .make_room_for_answer(request)
            .and_then(|()| self.around.http(request, body, trace.as_ref(), self.deadline));
        self.answered(answer)
    }

    /// Sees to it that the largest answer there can be could be held.
    pub(crate) fn make_room_for_answer(&mut self, request: &[u8]) -> Result<(), HttpError> {
        http::check_size(request)?;
        self.account.take(http::MAX_ANSWER).map_err(|over| HttpError::NoRoom(over.to_string()))
    }

    /// The trace that the turn's requests belong to.
    pub(crate) fn trace(&self) -> Option<TurnTrace> {
        self.side.as_ref()?.trace.clone()
    }

    /// Notes what an HTTP request has brought; its body is for the guest.
    pub(crate) fn answered(&mut self, answer: Result<Answer, HttpError>) -> Bytes {
        match answer {
            Ok(answer) => {
                self.account.give_back(http::MAX_ANSWER);
                self.http_status = answer.status;
                self.http_headers = answer.headers;
                answer.body
            }
            Err(error) => {
                if !matches!(error, HttpError::NoRoom(_) | HttpError::TooLong) {
                    self.account.give_back(http::MAX_ANSWER);
                }
                self.http_status = 0;
                self.http_headers = Bytes::from_static(b"{}");
                self.log(Level::WARN, format!("http_request: {error}").as_bytes());
                Bytes::new()
            }
        }
    }
}

/// The ABI's number of the lowest level that is written at all.
pub(crate) fn log_level() -> i32 {
    match LevelFilter::current().into_level() {
        Some(Level::TRACE) => 0,
        Some(Level::DEBUG) => 1,
        Some(Level::INFO) => 2,
        Some(Level::WARN) => 3,
        Some(Level::ERROR) => 4,
        None => i32::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_bound() {
        let mut host = Host::new(Arc::new(Surroundings::none()));
        let half = vec![0; MAX_VARS / 2];
        assert_eq!(host.set_var(b"a", Some(&half)), Ok(()));
        assert_eq!(host.set_var(b"b", Some(&half)), Err(SetVarError::TooMany));
        assert_eq!(host.set_var(b"a", Some(&half)), Ok(()), "replacing takes no more room");
        assert_eq!(host.set_var(b"a", None), Ok(()));
        assert_eq!(host.set_var(b"b", Some(&half)), Ok(()));
        assert_eq!((host.var(b"a"), host.var(b"b")), (None, Some(half.into())));
        assert_eq!(host.vars_size, MAX_VARS / 2 + 1);
    }

    #[test]
    fn a_request_is_short_and_the_largest_answer_has_room() {
        let mut host = Host::new(Arc::new(Surroundings::none()));
        let mut make_room = |limit: u64, request: usize| {
            host.begin(limit, 0);
            let room = host.make_room_for_answer(&vec![b' '; request]);
            (room.map_err(|why| why.to_string()), host.account.held())
        };
        let (room, held) = make_room(HOST_MEMORY, http::MAX_REQUEST);
        assert_eq!((room, held), (Ok(()), http::MAX_ANSWER + 2));
        let (room, held) = make_room(HOST_MEMORY, http::MAX_REQUEST + 1);
        assert!(room.is_err_and(|why| why.contains("JSON has more than")) && held == 2);
        let (room, held) = make_room(http::MAX_ANSWER, 0);
        assert!(room.is_err_and(|why| why.contains("`host_memory` allows")) && held == 2);
    }

    #[test]
    fn a_variable_that_the_account_has_no_room_for_is_refused_and_one_is_always_removed() {
        let mut host = Host::new(Arc::new(Surroundings::none()));
        host.begin(1000, 0);
        assert_eq!(host.set_var(b"a", Some(b"")), Ok(()));
        let why = host.set_var(b"b", Some(&[0; 1000])).unwrap_err().to_string();
        assert!(why.contains("`host_memory` allows 1000"), "{why}");
        let left = 1000 - host.account.held();
        host.account.take(left).unwrap();
        assert_eq!(host.set_var(b"a", None), Ok(()));
        assert_eq!((host.vars_size, host.account.held()), (0, 1000 - (VAR as u64 + 1)));
    }
}
