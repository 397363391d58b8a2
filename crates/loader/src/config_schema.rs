//! A module's `config_schema`, and an actor's configuration held against it.
//!
//! Guests supply the schema, and a schema is a program: with two kilobytes of `$defs`, each of
//! which names the next one twice, evaluation takes more than a lifetime. So its size and its
//! patterns are bounded, and its compilation and evaluation are counted in steps. A custom keyword
//! counts them; it is added to every subschema. An endless evaluation has to try alternatives again
//! and again, and it meets the keyword before each; once the steps are used up, the keyword unwinds
//! out of the library.
//!
//! All of it happens on a thread of its own, whose stack is as large as the deepest schema
//! needs. It takes time: callers belong on threads that may block.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
    time::Duration,
};

use jsonschema::{Keyword, PatternOptions, ValidationError, Validator};
use reflowd_runtime::{
    excerpt,
    panic::{Boundary, Panic},
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value};
use thiserror::Error;

/// Bytes of a schema, as JSON. The largest that are written by hand have a tenth of it.
const MAX_SIZE: usize = 256 << 10;
/// Regular expressions of a schema. Each one is compiled.
const MAX_PATTERNS: usize = 200;
/// Bytes of one regular expression.
const MAX_PATTERN: usize = 1_000;
/// Bytes that a compiled expression may take. It bounds the time for compiling it, and that
/// for each character that it is held against.
const PATTERN_SIZE: usize = 256 << 10;
/// Bytes of an expression's cache while it is matched.
const PATTERN_CACHE: usize = 1 << 20;
/// Restarts of an expression with look-around or back-references on one text.
const BACKTRACKS: usize = 10_000;

/// Subschemas visited to compile a schema, or to hold a configuration against it. An
/// ordinary schema takes one for each of its parts.
const STEPS: u32 = 200_000;
/// Subschemas visited to find the words for what does not fit. Each may bring a copy of what
/// does not fit, so there are fewer of them.
const STEPS_TO_TELL: u32 = 10_000;
/// Time on a processor for each of these. It is for steps that take long themselves.
const CPU_TIME: Duration = Duration::from_secs(2);

/// Bytes of the thread's stack, as address space: what is not touched takes no memory.
const STACK: usize = 256 << 20;
/// Bytes of it that may be used when a subschema is entered. The rest is for the way from
/// there to the next one.
const STACK_IN_USE: usize = 192 << 20;

/// Violations that one message lists; more would bury the first.
const MAX_VIOLATIONS: usize = 10;

/// The keyword that counts. Other tools take it for an annotation.
const COUNTED: &str = "x-reflowd-counted";

/// Why a schema cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidSchema {
    /// It breaks a rule of JSON Schema.
    #[error("`config_schema` is no JSON Schema: {0}")]
    Wrong(String),
    /// A reference to a target that is not a schema, whose evaluation would not be counted.
    #[error("`config_schema` refers to {0}, which is within a value; put the schema into `$defs`")]
    IntoValue(String),
    /// It is too large.
    #[error("`config_schema` has {found} {what}, and {max} are allowed; make it simpler")]
    OverLimit {
        /// The thing that is too large.
        what: &'static str,
        /// Its size.
        found: usize,
        /// Its limit.
        max: usize,
    },
    /// Reading it takes too long.
    #[error("`config_schema` cannot be read: {0}")]
    Costly(#[from] Costly),
}

/// The resource that a schema exhausts. It may be small: parts that are named twice by parts that
/// are named twice are many.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Costly {
    /// Visits of subschemas.
    #[error("it takes more than {0} steps; it must not name its parts over and over")]
    Steps(u32),
    /// Time.
    #[error("it takes more than {0:?} of a processor; make it simpler")]
    Time(Duration),
    /// Subschemas within each other.
    #[error("its parts name each other too deeply; make it simpler")]
    Depth,
    /// The library for schemas has broken on it.
    #[error(transparent)]
    Broke(Panic),
    /// The system has no thread to do it on.
    #[error("the system has no thread for it: {0}")]
    NoThread(String),
}

/// Why a configuration does not fit.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It breaks rules of the schema.
    #[error("{}", .0.join("; "))]
    Violations(Vec<String>),
    /// The schema cannot be used.
    #[error(transparent)]
    Schema(#[from] InvalidSchema),
    /// Checking it against the schema takes too long.
    #[error("`config` cannot be held against the module's `config_schema`: {0}")]
    Costly(Costly),
}

/// Says whether `schema` is one that can be used. Blocks.
///
/// # Errors
/// The schema is invalid, or could keep the daemon busy.
pub(crate) fn check(schema: &Value) -> Result<(), InvalidSchema> {
    check_proportions(schema)?;
    aside(|| compile(schema).map(|_| ()))?
}

/// Holds an actor's configuration against the schema of its module. Blocks.
///
/// # Errors
/// It does not fit, or checking it takes too long.
pub(crate) fn fit(schema: &Value, config: &Value) -> Result<(), Unfit> {
    check_proportions(schema)?;
    let fit = aside(|| {
        let validator = compile(schema)?;
        if within(STEPS, || validator.is_valid(config)).map_err(Unfit::Costly)? {
            return Ok(());
        }
        let told = within(STEPS_TO_TELL, || {
            validator.iter_errors(config).map(|e| told(&e)).take(MAX_VIOLATIONS).collect()
        });
        let violations = told.unwrap_or_else(|costly| {
            vec![format!(
                "it does not fit the module's `config_schema`; where cannot be told: {costly}"
            )]
        });
        Err(Unfit::Violations(violations))
    });
    fit.map_err(Unfit::Costly)?
}

/// One violation, with its place. What is wrong may be large.
fn told(error: &ValidationError<'_>) -> String {
    let at = error.instance_path().to_string();
    let why = excerpt(error.to_string().as_bytes());
    if at.is_empty() { why } else { format!("{}: {why}", excerpt(at.as_bytes())) }
}

fn compile(schema: &Value) -> Result<Validator, InvalidSchema> {
    let wrong =
        |error: ValidationError<'_>| InvalidSchema::Wrong(excerpt(error.to_string().as_bytes()));
    // Before anything is put into it, so that messages show it as it is.
    jsonschema::meta::options().validate(schema).map_err(wrong)?;
    let counted = counted(schema, Siblings::of(schema, Siblings::Count));
    let patterns = PatternOptions::fancy_regex()
        .backtrack_limit(BACKTRACKS)
        .size_limit(PATTERN_SIZE)
        .dfa_size_limit(PATTERN_CACHE);
    let built = within(STEPS, || {
        jsonschema::options()
            .with_pattern_options(patterns)
            .with_keyword(COUNTED, |_: &Map<String, Value>, _: &Value, _| {
                step();
                Ok(Box::new(Counted) as Box<dyn for<'i> Keyword<'i>>)
            })
            .build(&counted)
    })?;
    built.map_err(wrong)
}

/// Does the work on a thread of its own, with a stack for it, and waits for that.
fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Costly> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("schema".into()).stack_size(STACK);
        let thread = builder
            .spawn_scoped(scope, || Boundary::Schema.catch(work))
            .map_err(|error| Costly::NoThread(error.to_string()))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic)).map_err(Costly::Broke)
    })
}

/// The budget of the thread.
#[derive(Clone, Copy)]
struct Purse {
    steps: u32,
    /// The budget at the start.
    all_steps: u32,
    /// The thread's own time at which it must have ended.
    until: Duration,
    /// Where its stack began.
    stack: usize,
}

thread_local! {
    static PURSE: Cell<Option<Purse>> = const { Cell::new(None) };
}

/// The payload with which an exhausted budget unwinds.
struct BudgetSpent(Costly);

/// Does the work, unless it takes more than so many steps.
fn within<T>(steps: u32, work: impl FnOnce() -> T) -> Result<T, Costly> {
    let here = 0_u8;
    let stack = std::ptr::from_ref(&here).addr();
    let until = cpu_time() + CPU_TIME;
    PURSE.set(Some(Purse { steps, all_steps: steps, until, stack }));
    let done = catch_unwind(AssertUnwindSafe(work));
    PURSE.set(None);
    done.map_err(|panic| match panic.downcast::<BudgetSpent>() {
        Ok(spent) => spent.0,
        Err(panic) => resume_unwind(panic),
    })
}

/// Takes a step, or unwinds to where the work began.
fn step() {
    let Some(mut purse) = PURSE.get() else { return };
    let here = 0_u8;
    let costly = if purse.steps == 0 {
        Costly::Steps(purse.all_steps)
    } else if purse.stack.abs_diff(std::ptr::from_ref(&here).addr()) > STACK_IN_USE {
        Costly::Depth
    } else if cpu_time() > purse.until {
        Costly::Time(CPU_TIME)
    } else {
        purse.steps -= 1;
        return PURSE.set(Some(purse));
    };
    // No panic: nothing is wrong with this program, so no hook need hear of it.
    resume_unwind(Box::new(BudgetSpent(costly)))
}

/// Time that this thread has spent on a processor.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.try_into().expect("a thread has not run for less than nothing")
}

/// The keyword: every value fits it, and asking costs a step.
struct Counted;

impl<'i> Keyword<'i> for Counted {
    fn validate(&self, _: &'i Value) -> Result<(), ValidationError<'i>> {
        step();
        Ok(())
    }

    fn is_valid(&self, _: &'i Value) -> bool {
        step();
        true
    }
}

/// The treatment of keywords beside a `$ref`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Siblings {
    /// They count, as in the drafts since 2019.
    Count,
    /// They do not.
    Ignored,
}

impl Siblings {
    /// By the draft that `schema` names; `else_so`, if it names none.
    fn of(schema: &Value, else_so: Self) -> Self {
        let Some(draft) = schema.get("$schema").and_then(Value::as_str) else { return else_so };
        let old = ["draft-03", "draft-04", "draft-06", "draft-07"];
        if old.iter().any(|old| draft.contains(old)) { Self::Ignored } else { Self::Count }
    }
}

/// Keywords whose value is data and not a schema: nothing may be added to it.
const OPAQUE: [&str; 4] = ["$vocabulary", "const", "dependentRequired", "enum"];
/// Keywords that hold subschemas by name.
const NAMED: [&str; 6] =
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];
/// Keywords that count beside a `$ref` in every draft, since they say nothing of a value.
const ASIDE: [&str; 3] = ["$schema", "$defs", "definitions"];

/// The same schema with the keyword that counts in each of its parts.
///
/// The library asks own keywords last, and `allOf` before whatever has alternatives. So the
/// keyword goes into an `allOf`, at its end, where it moves nothing that a `$ref` points to.
fn counted(schema: &Value, siblings: Siblings) -> Value {
    let Value::Object(schema) = schema else { return counted_inside(schema, siblings) };
    let siblings = match schema.get("$schema") {
        Some(_) => Siblings::of(&Value::Object(schema.clone()), siblings),
        None => siblings,
    };
    let mut parts: Map<String, Value> = Map::new();
    for (key, value) in schema {
        let part = match value {
            _ if OPAQUE.contains(&key.as_str()) => value.clone(),
            Value::Object(named) if NAMED.contains(&key.as_str()) => {
                named.iter().map(|(name, s)| (name.clone(), counted(s, siblings))).collect()
            }
            value => counted_inside(value, siblings),
        };
        parts.insert(key.clone(), part);
    }
    let mark = Value::Object([(COUNTED.to_owned(), Value::Bool(true))].into_iter().collect());
    if siblings == Siblings::Ignored && matches!(schema.get("$ref"), Some(Value::String(_))) {
        let reference = parts.remove_entry("$ref").into_iter().collect();
        parts.retain(|key, _| ASIDE.contains(&key.as_str()));
        parts.insert("allOf".into(), Value::Array(vec![mark, Value::Object(reference)]));
        return Value::Object(parts);
    }
    match parts.get_mut("allOf") {
        Some(Value::Array(all)) => all.push(mark),
        Some(_) => {}
        None => _ = parts.insert("allOf".into(), Value::Array(vec![mark])),
    }
    Value::Object(parts)
}

/// The value of a keyword: a subschema, a list of them, or neither.
fn counted_inside(value: &Value, siblings: Siblings) -> Value {
    match value {
        Value::Object(_) => counted(value, siblings),
        Value::Array(list) => list.iter().map(|item| counted_inside(item, siblings)).collect(),
        other => other.clone(),
    }
}

/// Checks what can be seen without reading it as a schema.
fn check_proportions(schema: &Value) -> Result<(), InvalidSchema> {
    let over = |what, found, max| {
        if found > max { Err(InvalidSchema::OverLimit { what, found, max }) } else { Ok(()) }
    };
    over("bytes", schema.to_string().len(), MAX_SIZE)?;
    let mut texts = Texts::default();
    texts.collect(schema);
    over("regular expressions", texts.patterns.len(), MAX_PATTERNS)?;
    let longest = texts.patterns.iter().map(|pattern| pattern.len()).max().unwrap_or(0);
    over("bytes in one regular expression", longest, MAX_PATTERN)?;
    match texts.references.iter().find(|reference| leads_into_value(reference)) {
        Some(reference) => Err(InvalidSchema::IntoValue(excerpt(reference.as_bytes()))),
        None => Ok(()),
    }
}

/// The texts in a schema that are programs of their own.
#[derive(Default)]
struct Texts<'s> {
    patterns: Vec<&'s str>,
    references: Vec<&'s str>,
}

impl<'s> Texts<'s> {
    fn collect(&mut self, value: &'s Value) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match (key.as_str(), value) {
                        ("pattern", Value::String(pattern)) => self.patterns.push(pattern),
                        ("patternProperties", Value::Object(by_pattern)) => {
                            self.patterns.extend(by_pattern.keys().map(String::as_str));
                        }
                        ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(to)) => {
                            self.references.push(to);
                        }
                        _ => {}
                    }
                    self.collect(value);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| self.collect(value)),
            _ => {}
        }
    }
}

/// Whether a reference is a JSON pointer into a part that [`counted`] leaves as it is.
fn leads_into_value(reference: &str) -> bool {
    let Some((_, pointer)) = reference.split_once('#') else { return false };
    let mut is_name = false;
    for part in unescaped(pointer).split('/').skip(1) {
        if !is_name && OPAQUE.contains(&part) {
            return true;
        }
        is_name = !is_name && NAMED.contains(&part);
    }
    false
}

/// A part of a URL, with its percent-encoding taken off.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
