//! What a module's bytes say, without running them.
//!
//! A [`Binary`] is filled as far as the bytes can be read, so that a module that
//! is refused can still be shown. Whether it may run is a separate answer.

mod bounds;
mod proposals;

use std::borrow::Cow;

use reflowd_runtime::excerpt;
use serde::Serialize;
use thiserror::Error;
use wasmparser::{
    BinaryReaderError, CompositeInnerType, ExternalKind, FuncType, Imports, Parser, Payload,
    TypeRef, ValidPayload, Validator,
};

use self::proposals::features;
use crate::signature::{Signature, WASI};

pub use self::proposals::PROPOSALS_ON;

/// Bytes of one page of linear memory.
pub(crate) const PAGE: u64 = 64 << 10;

/// Bytes of one element of a table: a pointer.
pub(crate) const TABLE_ELEMENT: usize = 8;

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
    /// Bytes that its tables take from the start.
    pub tables: u64,
    /// Whether code runs as soon as it is instantiated.
    pub start: bool,
    /// Bytes of its functions, which are what takes time to compile.
    #[serde(skip)]
    pub code: u64,
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
    /// The bytes are a module, but for a host that has more of WebAssembly.
    #[error(
        "the module uses {}, which {} off here; build it without (on are {PROPOSALS_ON})",
        .0.join(" and "),
        if .0.len() == 1 { "is" } else { "are" }
    )]
    FeatureOff(Vec<&'static str>),
    /// The bytes break a rule of WebAssembly.
    #[error(
        "{why} (at byte {offset}); it is damaged, or its compiler is wrong: build or copy it again"
    )]
    Malformed {
        /// The rule.
        why: String,
        /// Where.
        offset: usize,
    },
    /// The bytes are a module, but one that could keep a compiler busy for ever.
    #[error(
        "the module has {found} {what}, and {max} are allowed; build it optimised, or split it"
    )]
    OverLimit {
        /// What there is too much of.
        what: &'static str,
        /// How much there is, at least.
        found: u64,
        /// How much may be.
        max: u64,
    },
}

impl Binary {
    /// Reads `bytes` as far as possible, and says whether they are a valid module
    /// of reasonable proportions.
    pub fn read(bytes: &[u8]) -> (Self, Result<(), InvalidBinary>) {
        Self::read_with(bytes, Some(Validation::new()))
    }

    /// The same for bytes that are known to be a valid module. Their functions, which
    /// is most of them, are not looked at again.
    pub(crate) fn read_valid(bytes: &[u8]) -> (Self, Result<(), InvalidBinary>) {
        Self::read_with(bytes, None)
    }

    fn read_with(
        bytes: &[u8],
        validation: Option<Validation>,
    ) -> (Self, Result<(), InvalidBinary>) {
        let mut binary = Self::default();
        let valid = check_magic(bytes).and_then(|()| {
            binary.read_sections(bytes, validation).map_err(|refused| match refused {
                Refused::Invalid(error) => invalid(&error, bytes),
                Refused::Over(why) => why,
            })
        });
        (binary, valid)
    }

    /// Bytes that an instance takes from the start: its linear memory and its tables.
    #[must_use]
    pub fn needed_memory(&self) -> u64 {
        self.memory.map_or(0, |memory| memory.min).saturating_add(self.tables)
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
            .map(|export| format!("`{}`", excerpt(export.name.as_bytes())))
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

    /// Surveys and validates in one pass. What is invalid is surveyed to the end.
    fn read_sections(
        &mut self,
        bytes: &[u8],
        mut validation: Option<Validation>,
    ) -> Result<(), Refused> {
        let mut parser = Parser::new(0);
        parser.set_features(features());
        let mut declared = Declared::default();
        let mut sections = bounds::Sections::default();
        let mut valid = Ok(());
        for payload in parser.parse_all(bytes) {
            let surveyed = payload.map_err(Refused::from).and_then(|payload| {
                sections.check(&payload, self.memory.map(|memory| memory.min))?;
                self.survey(&payload, &mut declared)?;
                Ok(payload)
            });
            match (surveyed, &mut validation) {
                (Ok(payload), Some(validation)) if valid.is_ok() => {
                    valid = validation.check(&payload);
                }
                (Ok(_), _) => {}
                (Err(refused), _) => return valid.and(Err(refused)),
            }
        }
        valid
    }

    fn survey(&mut self, payload: &Payload<'_>, declared: &mut Declared) -> Result<(), Refused> {
        match payload {
            Payload::TypeSection(section) => {
                for group in section.clone() {
                    for ty in group?.into_types() {
                        declared.add_type(ty.composite_type.inner)?;
                    }
                }
            }
            Payload::ImportSection(section) => {
                for group in section.clone() {
                    let Imports::Single(_, import) = group? else { continue };
                    let ty = match import.ty {
                        TypeRef::Func(index) | TypeRef::FuncExact(index) => {
                            declared.functions.push(index);
                            declared.function(Some(index))
                        }
                        TypeRef::Table(_) => ItemType::Other("table"),
                        TypeRef::Memory(_) => ItemType::Other("memory"),
                        TypeRef::Global(_) => ItemType::Other("global"),
                        TypeRef::Tag(_) => ItemType::Other("tag"),
                    };
                    bounds::NAME.check(import.module.len().max(import.name.len()))?;
                    let (module, name) = (import.module.into(), import.name.into());
                    self.imports.push(Import { module, name, ty });
                }
            }
            Payload::FunctionSection(section) => {
                for index in section.clone() {
                    declared.functions.push(index?);
                }
            }
            Payload::MemorySection(section) => {
                for memory in section.clone() {
                    let memory = memory?;
                    let bytes = |pages: u64| pages.saturating_mul(PAGE);
                    let (min, max) = (bytes(memory.initial), memory.maximum.map(bytes));
                    self.memory.get_or_insert(Memory { min, max });
                }
            }
            Payload::TableSection(section) => {
                for table in section.clone() {
                    let bytes = table?.ty.initial.saturating_mul(TABLE_ELEMENT as u64);
                    self.tables = self.tables.saturating_add(bytes);
                }
            }
            Payload::ExportSection(section) => {
                for export in section.clone() {
                    let export = export?;
                    let ty = match export.kind {
                        ExternalKind::Func | ExternalKind::FuncExact => {
                            let index = usize::try_from(export.index).ok();
                            let index = index.and_then(|i| declared.functions.get(i).copied());
                            declared.function(index)
                        }
                        ExternalKind::Table => ItemType::Other("table"),
                        ExternalKind::Memory => ItemType::Other("memory"),
                        ExternalKind::Global => ItemType::Other("global"),
                        ExternalKind::Tag => ItemType::Other("tag"),
                    };
                    bounds::NAME.check(export.name.len())?;
                    self.exports.push(Export { name: export.name.into(), ty });
                }
            }
            Payload::StartSection { .. } => self.start = true,
            Payload::CodeSectionStart { size, .. } => self.code = u64::from(*size),
            _ => {}
        }
        Ok(())
    }
}

/// What later sections refer to by number.
#[derive(Default)]
struct Declared {
    /// By index; only functions have a type that matters.
    types: Vec<Option<FuncType>>,
    /// Parameters and results of all of them.
    values: usize,
    /// The type of each function, imports first.
    functions: Vec<u32>,
}

impl Declared {
    fn add_type(&mut self, ty: CompositeInnerType) -> Result<(), Refused> {
        let ty = if let CompositeInnerType::Func(ty) = ty { Some(ty) } else { None };
        if let Some(ty) = &ty {
            bounds::PARAMS.check(ty.params().len())?;
            bounds::RESULTS.check(ty.results().len())?;
            self.values += ty.params().len() + ty.results().len();
            bounds::VALUES.check(self.values)?;
        }
        self.types.push(ty);
        // One entry of the section may stand for many types.
        Ok(bounds::TYPES.check(self.types.len())?)
    }

    fn function(&self, ty: Option<u32>) -> ItemType {
        let ty = ty.and_then(|i| self.types.get(usize::try_from(i).ok()?)?.as_ref());
        ty.map_or(ItemType::Other("function"), |ty| ItemType::Function(ty.into()))
    }
}

/// The rules of WebAssembly, and our bounds for functions.
struct Validation {
    validator: Validator,
    functions: bounds::Functions,
}

impl Validation {
    fn new() -> Self {
        Self {
            validator: Validator::new_with_features(features()),
            functions: bounds::Functions::default(),
        }
    }

    fn check(&mut self, payload: &Payload<'_>) -> Result<(), Refused> {
        if let ValidPayload::Func(function, body) = self.validator.payload(payload)? {
            self.functions.check(function, &body)?;
        }
        Ok(())
    }
}

/// Why reading ended.
enum Refused {
    Invalid(BinaryReaderError),
    Over(InvalidBinary),
}

impl From<BinaryReaderError> for Refused {
    fn from(error: BinaryReaderError) -> Self {
        Self::Invalid(error)
    }
}

impl From<InvalidBinary> for Refused {
    fn from(why: InvalidBinary) -> Self {
        Self::Over(why)
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
        return InvalidBinary::Truncated(bytes.len());
    }
    match proposals::needed(bytes) {
        off if off.is_empty() => {
            InvalidBinary::Malformed { why: error.message().into(), offset: error.offset() }
        }
        off => InvalidBinary::FeatureOff(off),
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
    fn a_module_known_to_be_valid_is_surveyed_and_its_functions_are_not_checked_again() {
        let module = r#"(module (import "a" "b" (func)) (memory 1 2) (start 0)
            (func (export "f") (result i32) (i32.const 1)))"#;
        let mut bytes = wat::parse_str(module).unwrap();
        let survey = |(binary, valid): (Binary, Result<(), InvalidBinary>)| {
            (format!("{binary:?}"), valid.is_ok())
        };
        assert_eq!(survey(Binary::read(&bytes)), survey(Binary::read_valid(&bytes)));
        // `i32.const 1` becomes `f32.const`, which is no i32 and longer.
        let at = bytes.len() - 3;
        assert_eq!(bytes[at], 0x41, "the last function of the module");
        bytes[at] = 0x43;
        assert!(!survey(Binary::read(&bytes)).1);
        assert!(survey(Binary::read_valid(&bytes)).1);
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
        check(&wat::parse_str("(module (memory i64 1))").unwrap(), Err("64-bit memories"));
        check(&wat::parse_str("(module (memory 1) (memory 1))").unwrap(), Err("several memories"));
        check(&wat::parse_str("(module (memory 1 2 shared))").unwrap(), Err("threads"));
    }

    #[test]
    fn proposals_that_not_every_engine_compiles_are_refused() {
        for (text, expected) in [
            ("(func (param v128) (result v128) local.get 0)", Ok(())),
            ("(func (param v128) (result v128) local.get 0 i32x4.relaxed_trunc_f32x4_s)", Ok(())),
            ("(func (result i32) i32.const 128 i32.extend8_s)", Ok(())),
            ("(func (result i32) f32.const 1 i32.trunc_sat_f32_s)", Ok(())),
            (r#"(global (export "g") (mut i32) (i32.const 0))"#, Ok(())),
            ("(func $f return_call $f)", Ok(())),
            ("(func (result i32 i64) i32.const 1 i64.const 2)", Ok(())),
            ("(table 1 funcref) (func (result funcref) ref.null func)", Ok(())),
            ("(memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 0)))", Ok(())),
            ("(global i32 (i32.add (i32.const 1) (i32.const 2)))", Ok(())),
            ("(func (result externref) ref.null extern)", Err("uses `externref`, which is off")),
            ("(type (struct (field i32)))", Err("uses garbage collection, which is off")),
            ("(type $t (func)) (func (param (ref $t)))", Err("typed function references")),
            ("(tag)", Err("uses exceptions, which is off")),
            (
                "(tag) (memory i64 1) (memory 1 1 shared)",
                Err("exceptions and threads and 64-bit memories and several memories"),
            ),
            (
                "(func (param i64 i64 i64 i64) (result i64 i64) local.get 0 local.get 1 local.get 2 local.get 3 i64.add128)",
                Err("wide arithmetic"),
            ),
            ("(memory 1 (pagesize 1))", Err("custom page sizes")),
            ("(type $t (func)) (type (cont $t))", Err("stack switching")),
        ] {
            check(&wat::parse_str(format!("(module {text})")).unwrap(), expected);
        }
    }

    /// A module with the most that is allowed passes, and with one more it does not.
    #[track_caller]
    fn at_most(bound: u64, what: &str, text: impl Fn(usize) -> String) {
        let read = |count| Binary::read(&wat::parse_str(text(count)).unwrap()).1;
        let max = usize::try_from(bound).unwrap();
        assert_eq!(read(max), Ok(()), "{max} {what}");
        let Err(InvalidBinary::OverLimit { what: found, max, .. }) = read(max + 1) else {
            panic!("more than {max} {what}: {:?}", read(max + 1));
        };
        assert_eq!((found, max), (what, bound));
    }

    #[test]
    fn what_a_module_has_is_bounded() {
        let module =
            |item: &'static str| move |n| format!("(module (type (func)) {})", item.repeat(n));
        at_most(20_000, "types", |n| format!("(module {})", "(type (func))".repeat(n)));
        at_most(1_000, "imports", module(r#"(import "a" "b" (func (type 0)))"#));
        at_most(200_000, "functions", module("(func (type 0))"));
        at_most(16, "tables", module("(table 1 funcref)"));
        at_most(10_000, "globals", module("(global i32 (i32.const 1))"));
        at_most(10_000, "element segments", module("(elem func)"));
        at_most(100_000, "data segments", module(r#"(data "")"#));
        at_most(10_000, "exports", |n| {
            let exports: String = (0..n).map(|i| format!("(export \"{i}\" (func 0))")).collect();
            format!("(module (func) {exports})")
        });
        at_most(200_000, "entries of one table", |n| format!("(module (table {n} funcref))"));
        at_most(256, "parameters of one function", |n| {
            format!("(module (type (func (param {}))))", "i32 ".repeat(n))
        });
        at_most(64, "results of one function or block", |n| {
            format!("(module (type (func (result {}))))", "i32 ".repeat(n))
        });
        at_most(200_000, "parameters and results of all types", |n| {
            let values = |n| "i32 ".repeat(n);
            let whole = format!("(type (func (param {}) (result {})))", values(192), values(8));
            let rest = format!("(type (func (param {})))", values(n % 200));
            format!("(module {} {rest})", whole.repeat(n / 200))
        });
        at_most(400_000, "entries of all element segments", |n| {
            let segment = |n| format!("(elem (i32.const 0) func {})", "0 ".repeat(n));
            let segments = format!("{0} {0} {1}", segment(190_000), segment(n - 380_000));
            format!("(module (func) (table 190000 funcref) {segments})")
        });
        let name = "bytes in the name of an import or export";
        at_most(4 << 10, name, |n| format!(r#"(module (import "{}" "b" (func)))"#, "a".repeat(n)));
        at_most(4 << 10, name, |n| format!(r#"(module (import "a" "{}" (func)))"#, "b".repeat(n)));
        at_most(4 << 10, name, |n| format!(r#"(module (func (export "{}")))"#, "e".repeat(n)));
        at_most(PAGE, "bytes up to the end of its data in its memory", |n| {
            format!("(module (memory 1) (data (i32.const {}) \"abcd\"))", n - 4)
        });
    }

    /// A value that takes so many instructions, an even number, one more, and the end.
    fn computed(instructions: usize) -> String {
        "i32.const 1 ".repeat(instructions / 2 + 1) + &"i32.add ".repeat(instructions / 2)
    }

    #[test]
    fn what_is_computed_for_each_instance_is_bounded_wherever_it_stands() {
        const WHAT: &str = "instructions, entries and segments that are run to fill each instance";
        let module = |item: &str| {
            format!(
                "(module (func) (memory 1) (table 9 funcref) (global $g i32 i32.const 0) {item})"
            )
        };
        let read = |item: &str| Binary::read(&wat::parse_str(module(item)).unwrap()).1;
        let over = |valid| matches!(valid, Err(InvalidBinary::OverLimit { what: WHAT, .. }));
        for (before, after, itself) in [
            ("(global i32", ")", 0),
            ("(data (offset", ") \"\")", 1),
            ("(elem (offset", ") func 0)", 1),
        ] {
            assert_eq!(read(&format!("{before} {} {after}", computed(9_996))), Ok(()), "{before}");
            assert!(over(read(&format!("{before} {} {after}", computed(10_000)))), "{before}");
            // Many small ones, of three instructions and the end.
            let small = |n| format!("{before} {} {after}", computed(2)).repeat(n);
            let most = 10_000 / (4 + itself);
            assert_eq!(read(&small(most)), Ok(()), "{before}");
            assert!(over(read(&small(most + 1))), "{before}");
        }
        let together = format!("(global i32 {0}) (data (offset {0}) \"\")", computed(5_000));
        assert!(over(read(&together)));
        for plain in
            ["(global i64 i64.const 1)", "(data (i32.const 1) \"\")", "(elem (i32.const 1) func 0)"]
        {
            assert_eq!(read(&plain.repeat(9_000)), Ok(()), "{plain}");
        }
    }

    #[test]
    fn what_cannot_be_copied_into_an_instance_is_bounded() {
        const WHAT: &str = "instructions, entries and segments that are run to fill each instance";
        let read = |items: &str| {
            let text = format!("(module (func) (memory 400) (table 60000 funcref) {items})");
            Binary::read(&wat::parse_str(text).unwrap()).1
        };
        let over =
            |items: &str| matches!(read(items), Err(InvalidBinary::OverLimit { what: WHAT, .. }));
        let entries = |head: &str, n: usize| format!("(elem {head} {})", "0 ".repeat(n));
        let values =
            |n: usize| format!("(elem (i32.const 0) funcref {})", "(ref.func 0)".repeat(n));
        // As they are, and into a table that has room for them.
        assert_eq!(read(&entries("(i32.const 0) func", 60_000)), Ok(()));
        assert_eq!(read(&entries("declare func", 60_000)), Ok(()));
        // Entries that only an instruction puts into place, and those after them.
        assert_eq!(read(&entries("func", 10_000)), Ok(()));
        assert!(over(&entries("func", 10_001)));
        assert!(over(&values(10_001)));
        assert!(over(&entries("(offset i32.const 0 i32.const 0 i32.add) func", 10_001)));
        let beyond = entries("(i32.const 59999) func", 2);
        assert_eq!(read(&beyond), Ok(()));
        assert!(over(&format!("{beyond} {}", entries("(i32.const 0) func", 10_001))));
        // Data, of which all or nothing is copied.
        let data = |at: usize| format!("(data (i32.const {at}) \"a\")");
        let many: String = (0..10_001).map(data).collect();
        assert_eq!(read(&many), Ok(()));
        let computed = "(data (offset i32.const 0 i32.const 0 i32.add) \"\")";
        assert!(over(&format!("{many} {computed}")));
        let far = data(20 << 20);
        assert!(over(&format!("{many} {far}")));
        let dense = format!("(data (i32.const {}) \"{}\")", 1 << 20, "a".repeat(11 << 20));
        assert_eq!(read(&format!("{many} {dense} {far}")), Ok(()));
    }

    #[test]
    fn what_a_function_has_is_bounded() {
        let function = |body: String| format!("(module (func {body}))");
        let nested = |block: &str, n| function(block.repeat(n) + &"end ".repeat(n));
        // Without the count of locals and the end.
        at_most(256 << 10, "bytes of code in one function", |n| function("nop ".repeat(n - 2)));
        at_most(4_000, "locals in one function", |n| {
            function(format!("(param i32) (local {})", "i64 ".repeat(n - 1)))
        });
        at_most(10_000, "blocks inside each other", |n| nested("block ", n));
        at_most(100, "loops inside each other", |n| nested("loop ", n));
        let (_, one_by_one) =
            Binary::read(&wat::parse_str(function("loop end ".repeat(1000))).unwrap());
        assert_eq!(one_by_one, Ok(()));
        at_most(20_000, "calls in one function", |n| function("call 0 ".repeat(n)));
        at_most(4_000, "values given to and by the blocks of one function", |n| {
            function("block (result i32) i32.const 0 end drop ".repeat(n))
        });
        at_most(4_000, "values given to and by the blocks of one function", |n| {
            let of_three =
                "i32.const 0 i32.const 0 loop (param i32 i32) (result i32) drop end drop ";
            let of_one = "if (result i32) i32.const 0 else i32.const 1 end drop "
                .replace("if", "i32.const 0 if");
            function(of_three.repeat(n / 3) + &of_one.repeat(n % 3))
        });
        at_most(20_000, "calls in one function", |n| {
            let calls = "call 0 i32.const 0 call_indirect ".repeat(n / 2)
                + "call 0 ".repeat(n % 2).as_str();
            format!("(module (table 1 funcref) (func {calls}))")
        });
        at_most(20_000, "labels of one `br_table`", |n| {
            function(format!("i32.const 0 br_table {}", "0 ".repeat(n + 1)))
        });
    }

    /// A module of so many functions, each of so many bytes.
    fn with_code(functions: u64, bytes: u64) -> Vec<u8> {
        let section = |number: u8, content: &[u8], module: &mut Vec<u8>| {
            module.push(number);
            push_leb(module, content.len() as u64);
            module.extend_from_slice(content);
        };
        let mut module = b"\0asm\x01\0\0\0".to_vec();
        section(1, &[1, 0x60, 0, 0], &mut module);
        let (mut types, mut code) = (Vec::new(), Vec::new());
        push_leb(&mut types, functions);
        push_leb(&mut code, functions);
        for _ in 0..functions {
            types.push(0);
            push_leb(&mut code, bytes);
            // No locals, and then nothing but `nop`.
            code.push(0);
            code.extend((2..bytes).map(|_| 1));
            code.push(0x0b);
        }
        section(3, &types, &mut module);
        section(10, &code, &mut module);
        module
    }

    #[test]
    fn the_code_of_all_functions_is_bounded() {
        assert_eq!(Binary::read(&with_code(63, 256 << 10)).1, Ok(()));
        let Err(InvalidBinary::OverLimit { what, .. }) = Binary::read(&with_code(65, 256 << 10)).1
        else {
            panic!("it is over the bound")
        };
        assert_eq!(what, "bytes of code in all functions");
        assert_eq!(Binary::read(&with_code(3, 1000)).0.code, 3 * 1002);
    }

    #[test]
    fn what_costs_a_compiler_more_than_its_bytes_is_bounded() {
        let read = |functions: usize, locals: usize, body: &str| {
            let function = format!("(func (local {}) {body})", "i64 ".repeat(locals));
            let text = format!("(module {})", function.repeat(functions));
            Binary::read(&wat::parse_str(text).unwrap()).1.map_err(|e| e.to_string())
        };
        let over = |what: &str| {
            Err(format!("the module has {what} are allowed; build it optimised, or split it"))
        };
        let blocks = |n: usize| "block end if end ".repeat(n / 2).replace("if", "i32.const 0 if");
        assert_eq!(read(1, 1000, &blocks(10_000)), Ok(()));
        assert_eq!(
            read(1, 1000, &blocks(10_002)),
            over("10001000 locals times blocks in one function, and 10000000")
        );
        assert_eq!(read(20, 4000, &blocks(2500)), Ok(()));
        assert_eq!(
            read(21, 4000, &blocks(2500)),
            over("210000000 locals times blocks in all functions, and 200000000")
        );
        let sets: String = (0..1000).map(|i| format!("i64.const 0 local.set {i} ")).collect();
        let nested = |n: usize| "block ".repeat(n) + &sets + &sets + &"end ".repeat(n);
        assert_eq!(read(1, 1000, &nested(250)), Ok(()));
        assert_eq!(
            read(1, 1000, &nested(251)),
            over("251000 locals set inside blocks of one function, and 250000")
        );
        assert_eq!(read(20, 1000, &nested(250)), Ok(()));
        assert_eq!(
            read(21, 1000, &nested(250)),
            over("5250000 locals set inside blocks of all functions, and 5000000")
        );
    }

    #[test]
    fn data_is_held_against_memory_only_where_both_are_known() {
        for (text, fits) in [
            (r#"(memory 1) (data (i32.const -1) "a")"#, false),
            (r#"(memory 1) (data (i32.const 65536) "")"#, true),
            (r#"(memory 1) (data (i32.const 65537) "")"#, false),
            (r#"(memory 0) (data (i32.const 0) "a")"#, false),
            (r#"(memory 0) (data "a")"#, true),
            (r#"(import "a" "b" (memory 0)) (data (i32.const 0) "a")"#, true),
            (r#"(memory 0) (data (i32.add (i32.const 0) (i32.const 0)) "a")"#, true),
            (r#"(import "a" "b" (global i32)) (memory 0) (data (global.get 0) "a")"#, true),
        ] {
            let (_, valid) = Binary::read(&wat::parse_str(format!("(module {text})")).unwrap());
            assert_eq!(valid.is_ok(), fits, "{text}: {valid:?}");
        }
    }

    #[test]
    fn what_is_invalid_is_shown_to_the_end() {
        let text = "(module (memory i64 1) (func (export \"f\") (result i32) i32.const 7))";
        let (binary, valid) = Binary::read(&wat::parse_str(text).unwrap());
        assert!(matches!(valid, Err(InvalidBinary::FeatureOff(_))), "{valid:?}");
        assert_eq!(binary.export("f").map(ToString::to_string).as_deref(), Some("() -> i32"));
    }

    #[test]
    fn plain_damage_is_not_taken_for_a_feature() {
        let text = "(module (func (export \"f\") (result i32) i32.const 7))";
        let mut bytes = wat::parse_str(text).unwrap();
        let at = bytes.len() - 3;
        assert_eq!(bytes[at], 0x41, "the constant");
        bytes[at] = 0x42;
        let why = Binary::read(&bytes).1.unwrap_err().to_string();
        assert!(why.contains("type mismatch") && why.contains("damaged"), "{why}");
        assert!(!why.contains("off here"), "{why}");
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
