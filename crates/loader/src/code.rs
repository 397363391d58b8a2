//! Compiled code on either engine, so that loading takes the same steps on both.
//!
//! Everything here may take long, and blocks: it belongs on threads for that.

use std::{
    fmt::{self, Write as _},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use reflowd_runtime::{Digest, EnginePer, Metadata, Program};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::runtime::Handle;
use tracing::Level;

use crate::{
    binary::Binary,
    code_cache::CodeCache,
    direct, extism_engine,
    host::{Host, Surroundings},
};

/// What runs modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The Extism SDK: the reference for what the plug-in ABI means, and no sandbox.
    Extism,
    /// The plug-in ABI on wasmtime itself: faster, fair, and within limits that hold.
    #[default]
    Direct,
}

/// A word that names no engine.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is no engine; there are `direct` and `extism`")]
pub struct UnknownEngine(String);

impl EngineKind {
    /// Every engine.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Extism];
}

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        let kind = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        kind.ok_or_else(|| UnknownEngine(text.into()))
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Extism => "extism",
            Self::Direct => "direct",
        })
    }
}

/// Code of an earlier time, whose module was checked before it was compiled.
pub(crate) struct Revived(wasmtime::Module);

impl Revived {
    /// The code of the module with that digest, where the engine can keep it and it
    /// is there.
    pub(crate) fn find(engine: EngineKind, cache: &CodeCache, digest: &Digest) -> Option<Self> {
        match engine {
            EngineKind::Direct => direct::revive(cache, digest).map(Self),
            EngineKind::Extism => None,
        }
    }
}

/// A compiled module.
pub(crate) enum Code {
    Extism(Box<extism_engine::Code>),
    Direct(direct::Code),
}

impl Code {
    /// Code that need not be compiled.
    ///
    /// # Errors
    /// It does not fit the functions of the host.
    pub(crate) fn revived(code: &Revived, binary: &Binary) -> Result<Self, String> {
        direct::Code::new(&code.0, binary).map(Self::Direct)
    }

    /// Compiles a module to be asked about itself, and keeps its code in the cache,
    /// where the engine can.
    ///
    /// # Errors
    /// It cannot be compiled, or not in reasonable time.
    pub(crate) fn compile_first(
        engine: EngineKind,
        bytes: &[u8],
        binary: &Binary,
        memory: u64,
        keep: Option<(&CodeCache, &Digest)>,
    ) -> Result<Self, Uncompiled> {
        match engine {
            EngineKind::Direct => direct::Code::compile(bytes, binary, keep).map(Self::Direct),
            EngineKind::Extism if binary.runs_at_instantiation() => {
                let code = extism_engine::Code::compile_with_fuel(bytes, binary, memory);
                code.map(|code| Self::Extism(Box::new(code))).map_err(Uncompiled::Refused)
            }
            EngineKind::Extism => Self::compile(engine, bytes, binary, memory),
        }
    }

    /// Compiles a module for an actor with so much memory.
    ///
    /// # Errors
    /// It cannot be compiled, or not in reasonable time.
    pub(crate) fn compile(
        engine: EngineKind,
        bytes: &[u8],
        binary: &Binary,
        memory: u64,
    ) -> Result<Self, Uncompiled> {
        match engine {
            EngineKind::Extism => {
                let code = extism_engine::Code::compile(bytes, binary, memory);
                code.map(|code| Self::Extism(Box::new(code))).map_err(Uncompiled::Refused)
            }
            EngineKind::Direct => direct::Code::compile(bytes, binary, None).map(Self::Direct),
        }
    }

    /// The code for one more actor; none where each needs its own.
    pub(crate) fn share(&self) -> Option<Self> {
        match self {
            Self::Extism(_) => None,
            Self::Direct(code) => Some(Self::Direct(code.clone())),
        }
    }

    /// A new instance, initialised. Its initialisers may take `time`, where the
    /// engine can hold them to it.
    ///
    /// # Errors
    /// What went wrong in its start function or initialisers, or around it.
    pub(crate) fn instantiate(
        &self,
        around: &Arc<Surroundings>,
        memory: u64,
        time: Duration,
    ) -> Result<Instance, Unstarted> {
        match self {
            Self::Extism(code) => {
                let instance = code.instantiate(around).map_err(Unstarted::Broke)?;
                Ok(Instance::Extism(Box::new(instance)))
            }
            Self::Direct(code) => {
                let instance = code.instantiate(around, memory, time);
                Handle::current().block_on(instance).map(|i| Instance::Direct(Box::new(i)))
            }
        }
    }

    /// The program of an actor, whose first engine is to be `proven`, an instance
    /// of this very code.
    pub(crate) fn into_program(self, parts: Parts, proven: Instance) -> Arc<dyn Program> {
        match (self, proven) {
            (Self::Extism(code), Instance::Extism(proven)) => {
                Arc::new(extism_engine::ExtismProgram::new(parts, *code, *proven))
            }
            (Self::Direct(code), Instance::Direct(proven)) => {
                Arc::new(direct::DirectProgram::new(parts, code, *proven))
            }
            _ => unreachable!("an instance is of the engine of its code"),
        }
    }
}

/// The reason why compiling failed.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Uncompiled {
    /// The compiler's error.
    #[error("{0}")]
    Refused(String),
    /// It took more than so much time on processors, and was given up.
    #[error("compiling it takes more than {0:?} of processor time")]
    Costly(Duration),
}

/// Why there is no new instance.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Unstarted {
    /// It is the module's fault.
    #[error("{0}")]
    Broke(String),
    /// Its initialisers were given their time, which may be the machine's fault.
    #[error("its initialisers do not end in time")]
    Late,
    /// The system has no room for it.
    #[error("{0}")]
    NoRoom(String),
}

/// What a program is told, whatever runs it.
pub(crate) struct Parts {
    pub(crate) digest: Digest,
    pub(crate) metadata: Metadata,
    pub(crate) around: Arc<Surroundings>,
    pub(crate) entry_point: String,
    pub(crate) engine_per: EnginePer,
    /// Bytes of linear memory.
    pub(crate) memory: u64,
    /// Whether the module exports `migrate_state`.
    pub(crate) migrates: bool,
    /// How long instantiation may take before nobody waits for it any more.
    pub(crate) patience: Duration,
}

/// A running module that is asked about itself.
pub(crate) enum Instance {
    Extism(Box<extism_engine::Instance>),
    Direct(Box<direct::Instance>),
}

impl Instance {
    /// Calls an export outside of turns.
    pub(crate) fn ask(&mut self, export: &str, input: &[u8], time: Duration) -> Ended {
        let deadline = std::time::Instant::now() + time;
        match self {
            Self::Extism(instance) => instance.ask(export, input, deadline),
            Self::Direct(instance) => {
                Handle::current().block_on(instance.ask(export, input, deadline))
            }
        }
    }
}

/// How a call ended.
pub(crate) enum Ended {
    /// The guest answered.
    Answer(Bytes),
    /// The guest answered with an error of its own.
    Guest(String),
    /// The guest answered with something that cannot be taken.
    Bad(String),
    /// The guest broke. The instance must be dropped.
    Trap(String),
    /// The deadline struck. The instance must be dropped.
    Timeout,
}

/// Calls of a backtrace that are logged, the innermost first. Each costs time.
pub(crate) const MAX_FRAMES: usize = 20;

/// Bytes of the name of a function that are shown. A module may name one as it likes, and a
/// mangled name may stand for one that is many times as long.
const MAX_CALL: usize = 1 << 10;

/// The name of a function for whoever reads a backtrace.
pub(crate) fn readable_call(name: &str) -> String {
    let mut shown = Cut(String::new());
    // It is an error of `Cut` alone that ends this early.
    _ = write!(shown, "{:#}", rustc_demangle::demangle(cut(name, MAX_CALL)));
    shown.0
}

/// The beginning of a text, of so many bytes at most.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// The first bytes of a text that is written, which takes no more than they are.
struct Cut(String);

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let part = cut(text, MAX_CALL - self.0.len());
        self.0.push_str(part);
        if part.len() < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Why a guest broke that had reached its limit of memory.
pub(crate) fn memory_limit_reached(limit: u64) -> String {
    let size = match limit {
        limit if limit.is_multiple_of(1 << 20) => format!("{} MiB", limit >> 20),
        limit if limit.is_multiple_of(1 << 10) => format!("{} KiB", limit >> 10),
        limit => format!("{limit} bytes"),
    };
    format!("memory limit reached ({size})")
}

/// Bytes of what a guest says went wrong that are kept: enough for whoever reads it.
const MAX_ERROR: usize = 8 << 10;

impl Ended {
    /// Tells the actor's log of a guest that broke, and of the calls that it was in.
    pub(crate) fn log(&self, host: &Host, calls: &[String]) {
        match self {
            Self::Trap(why) => host.log(Level::ERROR, format!("broke: {why}").as_bytes()),
            Self::Timeout => host.log(Level::ERROR, b"was stopped at its deadline"),
            Self::Answer(_) | Self::Guest(_) | Self::Bad(_) => return,
        }
        calls.iter().for_each(|call| host.log(Level::ERROR, format!("  in {call}").as_bytes()));
    }

    /// The guest answered with that error. What is too long to read is cut.
    pub(crate) fn guest(error: String) -> Self {
        Self::Guest(readable(error))
    }

    /// The guest broke for that reason. What is too long to read is cut.
    pub(crate) fn trap(why: String) -> Self {
        Self::Trap(readable(why))
    }
}

/// What a guest has set as its error, as text. Only what is kept of it is looked at.
pub(crate) fn error_text(error: &[u8]) -> String {
    // Replacing what is no UTF-8 never makes it shorter; one byte more tells that it is cut.
    let kept = error.len().min(MAX_ERROR + 1);
    readable(String::from_utf8_lossy(&error[..kept]).into_owned())
}

/// As much of a text as anybody reads.
fn readable(mut text: String) -> String {
    if text.len() > MAX_ERROR {
        text.truncate(text.floor_char_boundary(MAX_ERROR));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_shown_in_its_own_unit() {
        for (limit, shown) in [(100 << 20, "100 MiB"), (1536 << 10, "1536 KiB"), (100, "100 bytes")]
        {
            assert_eq!(memory_limit_reached(limit), format!("memory limit reached ({shown})"));
        }
    }

    #[test]
    fn what_a_guest_says_went_wrong_is_cut_to_what_anybody_reads() {
        for error in [b"\xff".repeat(1 << 20), vec![b'x'; MAX_ERROR + 1], vec![0xc3; MAX_ERROR + 1]]
        {
            let text = error_text(&error);
            assert!(text.len() <= MAX_ERROR + 3 && text.ends_with('…'), "{}", text.len());
        }
        assert_eq!(error_text(&vec![b'x'; MAX_ERROR]), "x".repeat(MAX_ERROR));
        let long = "x".repeat(1 << 20);
        for ended in [Ended::guest(long.clone()), Ended::trap(long)] {
            let (Ended::Guest(text) | Ended::Trap(text)) = ended else { panic!("another end") };
            assert!(text.len() <= MAX_ERROR + 3, "{}", text.len());
        }
    }

    #[test]
    fn the_name_of_a_function_is_demangled_and_cut_to_what_anybody_reads() {
        assert_eq!(readable_call("_ZN5guest4fail17h0123456789abcdefE"), "guest::fail");
        assert_eq!(readable_call("plain"), "plain");
        assert_eq!(readable_call(&"x".repeat(28 << 20)), "x".repeat(MAX_CALL));
        assert!(readable_call(&"é".repeat(MAX_CALL)).len() <= MAX_CALL);
    }

    #[test]
    fn an_engine_is_named_by_its_word() {
        for kind in EngineKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
        assert_eq!("wasm3".parse::<EngineKind>(), Err(UnknownEngine("wasm3".into())));
    }
}
