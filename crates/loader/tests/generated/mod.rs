//! Modules that nobody wrote: wasm-smith makes them of random bytes.
//!
//! What is generated at will hardly ever is an actor. An actor is therefore
//! generated around a shape: it has the shape's imports and exports, and two of its
//! functions, which speak to the host, then get the bodies that they have in the
//! shape. They answer with metadata, and with the result of a function that is
//! random, as are all others, tables, data and the start function.

#![allow(dead_code, reason = "each test and fuzz target uses a part of it")]

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use reflowd_loader::host_functions;
use wasm_encoder::{CodeSection, RawSection};
use wasm_smith::{Config, Module};
use wasmparser::{
    ConstExpr, ElementItems, ExternalKind, FunctionBody, Operator, Parser, Payload, TypeRef,
};

use crate::guest::METADATA;

/// A module of any kind, with features that are off here.
pub(crate) fn anything(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let mut config = Config::arbitrary(u)?;
    config.allow_invalid_funcs = u.ratio(1, 4)?;
    config.generate_custom_sections = u.arbitrary()?;
    config.export_everything = u.arbitrary()?;
    Ok(Module::new(config, u)?.to_bytes().into())
}

/// A module of any kind that uses nothing that is off here, but perhaps `externref`.
pub(crate) fn allowed(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let config = Config { generate_custom_sections: true, ..features(u)? };
    Ok(Module::new(config, u)?.to_bytes().into())
}

/// An actor that may call every host function, with any arguments, and run for ever.
pub(crate) fn actor(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let shape = shape(u, |_| true, true)?;
    let config = Config {
        // The imported ones count.
        max_funcs: 120,
        // Most fit into the memory that they are given; some do not.
        max_memory32_bytes: 20 << 16,
        relaxed_simd_enabled: true,
        module_shape: Some(shape.clone()),
        ..features(u)?
    };
    let mut module = Module::new(config, u)?;
    if u.arbitrary()? {
        module.ensure_termination(u.int_in_range(1..=10_000)?).expect("all bodies are generated");
    }
    Ok(with_bodies_of(&shape, &module.to_bytes()).into())
}

/// An actor that ends, and in which nothing depends on the processor. It is left to
/// chance whether it is [`comparable`].
pub(crate) fn predictable_actor(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let shape = shape(u, |name| USED.contains(&name), false)?;
    let config = Config {
        min_funcs: 8,
        // So that many leave the host alone.
        max_instructions: 50,
        // Limits that are the module's own are the same everywhere.
        max_memory32_bytes: 16 << 16,
        memory_max_size_required: true,
        table_max_size_required: true,
        canonicalize_nans: true,
        module_shape: Some(shape.clone()),
        ..features(u)?
    };
    let mut module = Module::new(config, u)?;
    module.ensure_termination(u.int_in_range(10..=10_000)?).expect("all bodies are generated");
    Ok(with_bodies_of(&shape, &module.to_bytes()).into())
}

/// What modules may use, and sizes that compile in milliseconds.
fn features(u: &mut Unstructured<'_>) -> Result<Config> {
    Ok(Config {
        acquire_release_atomics_enabled: false,
        compact_imports_enabled: false,
        custom_descriptors_enabled: false,
        custom_page_sizes_enabled: false,
        exceptions_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        multibyte_array_access_enabled: false,
        // They come with `externref`, which is off.
        reference_types_enabled: u.ratio(1, 4)?,
        relaxed_simd_enabled: false,
        shared_everything_threads_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        max_memories: 1,
        max_tables: 4,
        max_table_elements: 1_000,
        max_funcs: 30,
        max_instructions: 200,
        // The shape's own count, too.
        max_imports: 200,
        max_type_size: 10_000,
        // What traps at once tells little.
        disallow_traps: u.ratio(2, 3)?,
        ..Config::default()
    })
}

/// Exports whose bodies are not random.
const SHAPED: [&str; 2] = ["get_metadata", "process"];

/// Host functions that an answer takes.
const USED: [&str; 4] = ["alloc", "store_u8", "store_u64", "output_set"];

/// Where the result is written into an answer, as sixteen letters.
const ANSWER: &str = r#"{"outputs":{"out":{"type":"String","data":"aaaaaaaaaaaaaaaa"}}}"#;

/// Imports of those names, and the exports of an actor; with a memory, each turn asks
/// for more of it, since random numbers of pages are hardly ever few enough.
fn shape(
    u: &mut Unstructured<'_>,
    imported: impl Fn(&str) -> bool,
    with_memory: bool,
) -> Result<Vec<u8>> {
    let imports = host_functions().filter(|(_, name, _)| imported(name)).map(import);
    let (i32, i64) = (u.arbitrary::<i32>()?, u.arbitrary::<i64>()?);
    let (f32, f64) = (u.arbitrary::<i16>()?, u.arbitrary::<i32>()?);
    let (memory, growth) = if with_memory {
        let (pages, more) = (u.int_in_range(0..=17)?, u.int_in_range(0..=17)?);
        (
            format!(r#"(memory (export "memory") {pages})"#),
            format!("(drop (memory.grow (i32.const {more})))"),
        )
    } else {
        Default::default()
    };
    let at = ANSWER.find("aaaa").expect("there is room for the result");
    let text = format!(
        r#"(module {imports} {memory}
          (func (export "get_metadata") (result i32) (local $block i64) {metadata})
          (func (export "process") (result i32) (local $block i64) (local $n i64) (local $i i64)
            {growth}
            (local.set $n (call $work
              (i32.const {i32}) (i64.const {i64}) (f32.const {f32}) (f64.const {f64})))
            {answer}
            (loop $next
              (call $store_u8
                (i64.add (i64.add (local.get $block) (local.get $i)) (i64.const {at}))
                (i32.wrap_i64 (i64.add (i64.const 97) (i64.and (local.get $n) (i64.const 15)))))
              (local.set $n (i64.shr_u (local.get $n) (i64.const 4)))
              (local.set $i (i64.add (local.get $i) (i64.const 1)))
              (br_if $next (i64.lt_u (local.get $i) (i64.const 16))))
            (i32.const 0))
          (func $work (export "work") (param i32 i64 f32 f64) (result i64) (i64.const 0)))"#,
        imports = imports.collect::<String>(),
        metadata = format_args!("{} (i32.const 0)", put_out(METADATA)),
        answer = put_out(ANSWER),
    );
    match wat::parse_str(&text) {
        Ok(shape) => Ok(shape),
        Err(error) => panic!("{error}"),
    }
}

fn import((namespace, name, ty): (&str, &str, String)) -> String {
    let (params, results) = ty.split_once(" -> ").expect("a type has an arrow");
    let list = |types: &str| types.trim_matches(['(', ')']).replace(',', " ");
    let id = if USED.contains(&name) { format!("${name}") } else { String::new() };
    format!(
        r#"(import "{namespace}" "{name}" (func {id} (param {}) (result {})))"#,
        list(params),
        list(results)
    )
}

/// Instructions that make a block with that JSON the output.
fn put_out(json: &str) -> String {
    let mut bytes = json.as_bytes().to_vec();
    // Eight at a time are written.
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let mut text = format!("(local.set $block (call $alloc (i64.const {})))", bytes.len());
    for (index, word) in bytes.chunks(8).enumerate() {
        let word = u64::from_le_bytes(word.try_into().expect("the length is a multiple of eight"));
        text += &format!(
            "(call $store_u64 (i64.add (local.get $block) (i64.const {})) (i64.const {word}))",
            index * 8
        );
    }
    text + &format!("(call $output_set (local.get $block) (i64.const {}))", bytes.len())
}

/// A module of that shape, with the shape's own bodies of what speaks to the host.
fn with_bodies_of(shape: &[u8], module: &[u8]) -> Vec<u8> {
    let (own, ours) = (Functions::of(shape), Functions::of(module));
    // A body names functions by number.
    for name in SHAPED.into_iter().chain(["work"]) {
        assert_eq!(own.exported(name), ours.exported(name), "a shape keeps its numbers");
    }
    let mut code = CodeSection::new();
    for (number, body) in (ours.imported..).zip(&ours.bodies) {
        if SHAPED.iter().any(|name| ours.exported(name) == Some(number)) {
            code.raw(own.bodies[(number - own.imported) as usize].as_bytes());
        } else {
            code.raw(body.as_bytes());
        }
    }
    let mut whole = wasm_encoder::Module::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.expect(READ);
        match (&payload, payload.as_section()) {
            (Payload::CodeSectionStart { .. }, _) => _ = whole.section(&code),
            (_, Some((id, range))) => {
                whole.section(&RawSection { id, data: &module[range] });
            }
            _ => {}
        }
    }
    whole.finish()
}

/// The actor, where engines must agree about it: it calls the host only to answer, and
/// does not ask for more memory, which ends it on the stock engine if there is none.
pub(crate) fn comparable(actor: Bytes) -> Option<Bytes> {
    let grows = |operator: &Operator<'_>| matches!(operator, Operator::MemoryGrow { .. });
    (!calls_the_host(&actor) && !Functions::of(&actor).have(grows)).then_some(actor)
}

/// Whether what is random in an actor can get at a function of the host, by its number
/// or as a value.
pub(crate) fn calls_the_host(actor: &[u8]) -> bool {
    let functions = Functions::of(actor);
    let is_imported = |operator: &Operator<'_>| match operator {
        Operator::Call { function_index: number }
        | Operator::ReturnCall { function_index: number }
        | Operator::RefFunc { function_index: number } => *number < functions.imported,
        _ => false,
    };
    let takes_one = |value: ConstExpr<'_>| {
        value.get_operators_reader().into_iter().any(|o| is_imported(&o.expect(READ)))
    };
    functions.have(is_imported)
        || Parser::new(0).parse_all(actor).any(|payload| match payload.expect(READ) {
            Payload::ElementSection(section) => {
                section.into_iter().any(|element| match element.expect(READ).items {
                    ElementItems::Functions(numbers) => {
                        numbers.into_iter().any(|number| number.expect(READ) < functions.imported)
                    }
                    ElementItems::Expressions(_, values) => {
                        values.into_iter().any(|value| takes_one(value.expect(READ)))
                    }
                })
            }
            Payload::GlobalSection(section) => {
                section.into_iter().any(|global| takes_one(global.expect(READ).init_expr))
            }
            _ => false,
        })
}

const READ: &str = "what is generated can be read";

/// The functions of a module, by number: imported ones first.
struct Functions<'a> {
    imported: u32,
    bodies: Vec<FunctionBody<'a>>,
    exports: Vec<(&'a str, u32)>,
}

impl<'a> Functions<'a> {
    fn of(module: &'a [u8]) -> Self {
        let mut functions = Self { imported: 0, bodies: Vec::new(), exports: Vec::new() };
        for payload in Parser::new(0).parse_all(module) {
            match payload.expect(READ) {
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import.expect(READ);
                        functions.imported += u32::from(matches!(import.ty, TypeRef::Func(_)));
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export.expect(READ);
                        if export.kind == ExternalKind::Func {
                            functions.exports.push((export.name, export.index));
                        }
                    }
                }
                Payload::CodeSectionEntry(body) => functions.bodies.push(body),
                _ => {}
            }
        }
        functions
    }

    /// Whether one that is not of the shape has such an instruction.
    fn have(&self, wanted: impl Fn(&Operator<'_>) -> bool) -> bool {
        let shaped = SHAPED.map(|name| self.exported(name));
        (self.imported..).zip(&self.bodies).any(|(number, body)| {
            !shaped.contains(&Some(number))
                && body
                    .get_operators_reader()
                    .expect(READ)
                    .into_iter()
                    .any(|operator| wanted(&operator.expect(READ)))
        })
    }

    fn exported(&self, name: &str) -> Option<u32> {
        self.exports.iter().find(|(exported, _)| *exported == name).map(|(_, number)| *number)
    }
}
