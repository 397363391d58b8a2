//! Which of WebAssembly's proposals a module may use, and which it would need.

use wasmparser::{
    BinaryReaderError, FuncValidatorAllocations, Parser, ValidPayload, Validator, WasmFeatures,
};

/// The proposals that are on, for people.
pub const PROPOSALS_ON: &str =
    "WebAssembly 2.0 without `externref`, and relaxed SIMD, tail calls and extended constants";

/// The proposals that a module may use: those that every engine here compiles,
/// without those that would void a limit (shared, second or 64-bit memories) or
/// need a garbage collector in the host. A proposal that the parser learns later
/// stays off until it is named here.
pub(super) fn features() -> WasmFeatures {
    WasmFeatures::FLOATS
        | WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::SIMD
        | WasmFeatures::RELAXED_SIMD
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::EXTENDED_CONST
}

/// Proposals that are off. One that others build on stands behind them, and is told only
/// where none of them is.
const OFF: [(WasmFeatures, &str); 11] = [
    (WasmFeatures::GC, "garbage collection"),
    (WasmFeatures::EXCEPTIONS, "exceptions"),
    (WasmFeatures::LEGACY_EXCEPTIONS, "exceptions of the old kind"),
    (WasmFeatures::STACK_SWITCHING, "stack switching"),
    (WasmFeatures::THREADS, "threads"),
    (WasmFeatures::MEMORY64, "64-bit memories"),
    (WasmFeatures::MULTI_MEMORY, "several memories"),
    (WasmFeatures::CUSTOM_PAGE_SIZES, "custom page sizes"),
    (WasmFeatures::WIDE_ARITHMETIC, "wide arithmetic"),
    (WasmFeatures::FUNCTION_REFERENCES, "typed function references"),
    (WasmFeatures::GC_TYPES, "`externref`"),
];
/// What every reference but one to a function needs.
const FOUNDATIONS: WasmFeatures = WasmFeatures::GC_TYPES.union(WasmFeatures::FUNCTION_REFERENCES);

/// The proposals without which the module is not valid, by name; none, where it is not valid
/// with all of them either.
pub(super) fn needed(bytes: &[u8]) -> Vec<&'static str> {
    let valid = |features| validate(bytes, features).is_ok();
    let all = OFF.iter().fold(features(), |all, (proposal, _)| all | *proposal);
    if !valid(all) {
        return Vec::new();
    }
    let mut needed = Vec::new();
    for (proposal, name) in OFF {
        let is_foundation = FOUNDATIONS.contains(proposal);
        if (!is_foundation || needed.is_empty()) && !valid(all - proposal) {
            needed.push(name);
        }
    }
    if needed.is_empty() {
        // Each of several would do: the most modest one is told.
        let alone = OFF.iter().rev().find(|(proposal, _)| valid(features() | *proposal));
        needed.extend(alone.map(|(_, name)| *name));
    }
    needed
}

/// Parsing depends on the proposals as much as checking does.
fn validate(bytes: &[u8], features: WasmFeatures) -> Result<(), BinaryReaderError> {
    let mut validator = Validator::new_with_features(features);
    let mut parser = Parser::new(0);
    parser.set_features(features);
    for payload in parser.parse_all(bytes) {
        if let ValidPayload::Func(function, body) = validator.payload(&payload?)? {
            function.into_validator(FuncValidatorAllocations::default()).validate(&body)?;
        }
    }
    Ok(())
}
