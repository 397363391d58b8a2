//! What a module's bytes say, without running them.
//!
//! A [`Binary`] is filled as far as the bytes can be read, so that a module that
//! is refused can still be shown. Whether it may run is a separate answer.

use std::borrow::Cow;

use serde::Serialize;
use thiserror::Error;
use wasmparser::{
    BinaryReaderError, CompositeInnerType, ExternalKind, FuncType, Imports, Parser, Payload,
    TypeRef, Validator, WasmFeatures,
};

use crate::signature::{Signature, WASI};

/// Bytes of one page of linear memory.
pub(crate) const PAGE: u64 = 64 << 10;

/// Pages that 32 bits can address.
const MAX_PAGES: u64 = 1 << 16;
/// The number of the section that declares memories.
const MEMORY_SECTION: u8 = 5;
/// The flag of a memory that has a maximum.
const HAS_MAXIMUM: u8 = 1;

/// Exports that an engine calls by itself before the first turn.
const INITIALISERS: [&str; 3] = ["_initialize", "__wasm_call_ctors", "hs_init"];

/// What the bytes of a module declare.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Binary {
    /// What it exports, in the order of the file.
    pub exports: Vec<Export>,
    /// What it imports, in the order of the file.
    pub imports: Vec<Import>,
    /// Its linear memory, if it has one.
    pub memory: Option<Memory>,
    /// Whether code runs as soon as it is instantiated.
    pub start: bool,
}

/// One export.
#[derive(Clone, Debug, Serialize)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// The type of a function; the kind of anything else.
    #[serde(rename = "type")]
    pub ty: ItemType,
}

/// One import.
#[derive(Clone, Debug, Serialize)]
pub struct Import {
    /// The namespace.
    pub module: String,
    /// Its name there.
    pub name: String,
    /// The type of a function; the kind of anything else.
    #[serde(rename = "type")]
    pub ty: ItemType,
}

/// What an import or export is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ItemType {
    /// A function of that type.
    Function(Signature),
    /// A `memory`, `table`, `global` or `tag`.
    Other(&'static str),
}

/// The linear memory that a module declares, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// From the start.
    pub min: u64,
    /// At most, where it says so.
    pub max: Option<u64>,
}

/// Why bytes are no module that can run here.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidBinary {
    /// There are no bytes.
    #[error("the file is empty; is it still being written?")]
    Empty,
    /// WebAssembly's text form.
    #[error("this is WebAssembly text, not a binary; translate it with `wat2wasm`")]
    Text,
    /// A component, not a core module.
    #[error(
        "this is a component of the component model; build a core module with the plug-in ABI (for Rust: target `wasm32-unknown-unknown`, crate type `cdylib`)"
    )]
    Component,
    /// Something else altogether.
    #[error("this is no WebAssembly: it begins with {0}")]
    Magic(String),
    /// The bytes end too early.
    #[error("the file is cut off at byte {0}; copy it again")]
    Truncated(usize),
    /// The bytes break a rule of WebAssembly.
    #[error("{why} (at byte {offset}); was it built with a WebAssembly feature that is off here?")]
    Malformed {
        /// The rule.
        why: String,
        /// Where.
        offset: usize,
    },
}

impl Binary {
    /// Reads `bytes` as far as possible, and says whether they are a valid module.
    pub fn read(bytes: &[u8]) -> (Self, Result<(), InvalidBinary>) {
        let mut binary = Self::default();
        if let Err(why) = check_magic(bytes) {
            return (binary, Err(why));
        }
        let mut valid = binary.survey(bytes).map_err(|e| invalid(&e, bytes));
        if valid.is_ok() {
            valid = Validator::new_with_features(features())
                .validate_all(bytes)
                .map(|_| ())
                .map_err(|e| invalid(&e, bytes));
        }
        (binary, valid)
    }

    /// The type of the exported function of that name.
    #[must_use]
    pub fn export(&self, name: &str) -> Option<&ItemType> {
        self.exports.iter().find(|export| export.name == name).map(|export| &export.ty)
    }

    /// Whether it exports that function with the ABI's type, `() -> i32`.
    pub(crate) fn has_turn(&self, name: &str) -> bool {
        self.export(name) == Some(&ItemType::Function(Signature::turn()))
    }

    /// Whether it imports something of WASI.
    #[must_use]
    pub fn needs_wasi(&self) -> bool {
        self.imports.iter().any(|import| import.module == WASI)
    }

    /// The names of the functions that it exports, for an error.
    #[must_use]
    pub fn exported_functions(&self) -> String {
        let mut names: Vec<_> = self
            .exports
            .iter()
            .filter(|export| matches!(export.ty, ItemType::Function(_)))
            .map(|export| format!("`{}`", export.name))
            .take(21)
            .collect();
        if names.len() > 20 {
            names[20] = "…".into();
        }
        if names.is_empty() { "no function".into() } else { names.join(", ") }
    }

    /// Whether code of the module runs before its first export is called.
    #[must_use]
    pub fn runs_at_instantiation(&self) -> bool {
        self.start
            || INITIALISERS.iter().any(|name| match self.export(name) {
                // Only the one of Haskell's runtime takes arguments.
                Some(ItemType::Function(ty)) => ty.is_empty() || *name == "hs_init",
                _ => false,
            })
    }

    /// A name that it does not export.
    pub(crate) fn absent_export(&self) -> String {
        let longest = self.exports.iter().map(|export| export.name.len()).max().unwrap_or(0);
        "-".repeat(longest + 1)
    }

    /// `bytes` with the module's memory bounded to `limit` bytes.
    ///
    /// The bound is written one page higher than meant: the stock engine refuses
    /// to reach a declared maximum, even for a module that starts at it.
    pub(crate) fn with_memory_limit(bytes: &[u8], limit: u64) -> Cow<'_, [u8]> {
        let mut header = 8;
        for payload in Parser::new(0).parse_all(bytes) {
            let Ok(payload) = payload else { break };
            if let Payload::MemorySection(section) = &payload
                && let Some(Ok(memory)) = section.clone().into_iter().next()
            {
                let max = memory.maximum.unwrap_or(MAX_PAGES).min(limit / PAGE);
                let max = (max.max(memory.initial) + 1).min(MAX_PAGES);
                let mut content = vec![1, HAS_MAXIMUM];
                push_leb(&mut content, memory.initial);
                push_leb(&mut content, max);
                let mut bounded = bytes[..header].to_vec();
                bounded.push(MEMORY_SECTION);
                push_leb(&mut bounded, content.len() as u64);
                bounded.extend_from_slice(&content);
                bounded.extend_from_slice(&bytes[section.range().end..]);
                return Cow::Owned(bounded);
            }
            if let Some((_, range)) = payload.as_section() {
                header = range.end;
            }
        }
        Cow::Borrowed(bytes)
    }

    fn survey(&mut self, bytes: &[u8]) -> Result<(), BinaryReaderError> {
        let mut types: Vec<Option<FuncType>> = Vec::new();
        let mut functions: Vec<u32> = Vec::new();
        let function = |types: &[Option<FuncType>], index: Option<u32>| {
            let ty = index.and_then(|i| types.get(usize::try_from(i).ok()?)?.as_ref());
            ty.map_or(ItemType::Other("function"), |ty| ItemType::Function(ty.into()))
        };
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::TypeSection(section) => {
                    for group in section {
                        types.extend(group?.into_types().map(|ty| match ty.composite_type.inner {
                            CompositeInnerType::Func(ty) => Some(ty),
                            _ => None,
                        }));
                    }
                }
                Payload::ImportSection(section) => {
                    for group in section {
                        let Imports::Single(_, import) = group? else { continue };
                        let ty = match import.ty {
                            TypeRef::Func(index) | TypeRef::FuncExact(index) => {
                                functions.push(index);
                                function(&types, Some(index))
                            }
                            TypeRef::Table(_) => ItemType::Other("table"),
                            TypeRef::Memory(_) => ItemType::Other("memory"),
                            TypeRef::Global(_) => ItemType::Other("global"),
                            TypeRef::Tag(_) => ItemType::Other("tag"),
                        };
                        let (module, name) = (import.module.into(), import.name.into());
                        self.imports.push(Import { module, name, ty });
                    }
                }
                Payload::FunctionSection(section) => {
                    for index in section {
                        functions.push(index?);
                    }
                }
                Payload::MemorySection(section) => {
                    for memory in section {
                        let memory = memory?;
                        let bytes = |pages: u64| pages.saturating_mul(PAGE);
                        let (min, max) = (bytes(memory.initial), memory.maximum.map(bytes));
                        self.memory.get_or_insert(Memory { min, max });
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        let ty = match export.kind {
                            ExternalKind::Func | ExternalKind::FuncExact => {
                                let index = usize::try_from(export.index).ok();
                                let index = index.and_then(|i| functions.get(i).copied());
                                function(&types, index)
                            }
                            ExternalKind::Table => ItemType::Other("table"),
                            ExternalKind::Memory => ItemType::Other("memory"),
                            ExternalKind::Global => ItemType::Other("global"),
                            ExternalKind::Tag => ItemType::Other("tag"),
                        };
                        self.exports.push(Export { name: export.name.into(), ty });
                    }
                }
                Payload::StartSection { .. } => self.start = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Appends an unsigned number as WebAssembly writes it, seven bits a byte.
fn push_leb(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits fit a byte");
        number >>= 7;
        if number == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

impl std::fmt::Display for ItemType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Function(ty) => ty.fmt(f),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

/// The proposals that a module may use: what the engine compiles, without those
/// that would void a limit (shared, second or 64-bit memories).
fn features() -> WasmFeatures {
    let off = WasmFeatures::THREADS
        | WasmFeatures::SHARED_EVERYTHING_THREADS
        | WasmFeatures::MEMORY64
        | WasmFeatures::MULTI_MEMORY
        | WasmFeatures::CUSTOM_PAGE_SIZES
        | WasmFeatures::EXCEPTIONS
        | WasmFeatures::LEGACY_EXCEPTIONS
        | WasmFeatures::STACK_SWITCHING
        | WasmFeatures::WIDE_ARITHMETIC
        | WasmFeatures::COMPONENT_MODEL;
    WasmFeatures::default().difference(off)
}

fn check_magic(bytes: &[u8]) -> Result<(), InvalidBinary> {
    const MAGIC: &[u8] = b"\0asm";
    const CORE: &[u8] = &[1, 0, 0, 0];
    if bytes.is_empty() {
        return Err(InvalidBinary::Empty);
    }
    if bytes.len() < 8 && MAGIC.iter().zip(bytes).all(|(a, b)| a == b) {
        return Err(InvalidBinary::Truncated(bytes.len()));
    }
    if !bytes.starts_with(MAGIC) {
        let text = bytes.trim_ascii_start();
        let is_text = text.starts_with(b"(module")
            || text.starts_with(b"(component")
            || text.starts_with(b";;")
            || text.starts_with(b"(;");
        if is_text {
            return Err(InvalidBinary::Text);
        }
        let head: Vec<_> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
        return Err(InvalidBinary::Magic(head.join(" ")));
    }
    match &bytes[4..8] {
        CORE => Ok(()),
        // The second half of the version is the layer: 1 is the component model.
        [_, _, 1, 0] => Err(InvalidBinary::Component),
        version => Err(InvalidBinary::Malformed {
            why: format!("version {} of the binary format is not known", version[0]),
            offset: 4,
        }),
    }
}

fn invalid(error: &BinaryReaderError, bytes: &[u8]) -> InvalidBinary {
    if error.message().contains("unexpected end") {
        InvalidBinary::Truncated(bytes.len())
    } else {
        InvalidBinary::Malformed { why: error.message().into(), offset: error.offset() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Result<(), &str>) {
        let (_, valid) = Binary::read(bytes);
        let text = valid.map_err(|e| e.to_string());
        match (&text, expected) {
            (Ok(()), Ok(())) => {}
            (Err(text), Err(part)) if text.contains(part) => {}
            _ => panic!("{text:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn what_is_no_module_is_told_apart() {
        let module = wat::parse_str("(module (memory 1) (func (export \"f\") nop))").unwrap();
        check(&module, Ok(()));
        check(b"", Err("empty"));
        check(b"(module)", Err("text"));
        check(b";; a comment\n(module)", Err("text"));
        check(&wat::parse_str("(component)").unwrap(), Err("component"));
        check(b"\x7fELF----", Err("7f 45 4c 46"));
        check(b"\0as", Err("cut off at byte 3"));
        check(&module[..module.len() - 3], Err("cut off"));
        check(b"\0asm\x02\0\0\0", Err("version 2"));
        let invalid = wat::parse_str("(module (func (result i32) i64.const 1))").unwrap();
        check(&invalid, Err("type mismatch"));
        check(&wat::parse_str("(module (memory i64 1))").unwrap(), Err("memory64"));
        check(&wat::parse_str("(module (memory 1) (memory 1))").unwrap(), Err("memories"));
        check(&wat::parse_str("(module (memory 1 2 shared))").unwrap(), Err("threads"));
    }

    #[track_caller]
    fn bounded(memory: &str, limit: u64, expected: Option<(u64, u64)>) {
        let text = format!(
            "(module (func (export \"f\")) {memory} (global i32 (i32.const 0)) (@custom \"x\" \"y\"))"
        );
        let module = wat::parse_str(text).unwrap();
        let module = Binary::with_memory_limit(&module, limit);
        let (binary, valid) = Binary::read(&module);
        assert_eq!(valid, Ok(()));
        let found = binary.memory.map(|m| (m.min / PAGE, m.max.expect("a bound") / PAGE));
        assert_eq!(found, expected, "{memory}");
    }

    #[test]
    fn a_memory_is_bounded_by_the_limit_and_by_itself() {
        bounded("", 10 * PAGE, None);
        bounded("(memory 1)", 10 * PAGE, Some((1, 11)));
        bounded("(memory 1 5)", 10 * PAGE, Some((1, 6)));
        bounded("(memory 3 3)", 10 * PAGE, Some((3, 4)));
        bounded("(memory 1 500)", 300 * PAGE, Some((1, 301)));
        bounded("(memory 0)", u64::MAX, Some((0, 65536)));
    }

    #[test]
    fn exports_are_listed_though_the_module_is_cut() {
        let module = wat::parse_str("(module (func (export \"f\") (result i32) i32.const 7))");
        let module = module.unwrap();
        let (binary, valid) = Binary::read(&module[..module.len() - 2]);
        assert!(matches!(valid, Err(InvalidBinary::Truncated(_))));
        assert_eq!(binary.export("f").map(ToString::to_string).as_deref(), Some("() -> i32"));
    }
}
