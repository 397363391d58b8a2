//! The W3C trace context that travels with a message.
//!
//! A message that enters with one keeps it, including the vendors' part (`tracestate`), and passes
//! it on. It is read by the rules of the W3C recommendation: a context that is malformed or
//! duplicated is ignored, and a `tracestate` is only kept with a context.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// The longest `tracestate` that is passed on, in bytes: as much as the recommendation asks
/// for (§3.3.1.5). Longer ones lose whole members.
const MAX_STATE: usize = 512;

/// Members of a `tracestate`; a list with more is not valid (§3.3.1.1).
const MAX_MEMBERS: usize = 32;

/// The longest parts of a key, alone or as `tenant@system` (§3.3.1.3.1), and value (§3.3.1.3.2).
const KEY: usize = 256;
const TENANT: usize = 241;
const SYSTEM: usize = 14;
const VALUE: usize = 256;

/// Members longer than this are the first to go where a `tracestate` is too long (§3.3.1.5).
const LONG_MEMBER: usize = 128;

/// Flags that are passed on. Others have no meaning yet, and are set to zero as version 00 asks.
const KNOWN_FLAGS: u8 = SAMPLED | RANDOM;

/// The caller may have recorded the trace.
const SAMPLED: u8 = 1;

/// The trace's number is random in its lower 56 bits, so others may sample by it.
const RANDOM: u8 = 2;

/// The trace to which a message belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace, and the span of it that led to the message.
    pub context: TraceContext,
    /// The vendors' part.
    pub state: Option<Box<str>>,
}

impl Trace {
    /// The trace of a request with these headers, each as often as it is there.
    ///
    /// `None` without a well-formed `traceparent`, or with more than one: then a new trace begins.
    /// Several `tracestate` headers form one list.
    pub fn of_headers<'a>(
        parents: impl IntoIterator<Item = &'a str>,
        states: impl IntoIterator<Item = &'a str>,
    ) -> Option<Self> {
        let mut parents = parents.into_iter();
        let context = parents.next()?.trim().parse().ok()?;
        if parents.next().is_some() {
            return None;
        }
        Some(Self { context, state: state(states) })
    }

    /// As it was written down: a `traceparent` and a `tracestate`.
    #[must_use]
    pub fn of_text(parent: &str, state: Option<&str>) -> Option<Self> {
        Self::of_headers([parent], state)
    }

    /// The same trace, with another span that led on.
    #[must_use]
    pub fn onward(&self, span: u64) -> Self {
        Self { context: TraceContext { span, ..self.context }, state: self.state.clone() }
    }
}

/// The members of `tracestate` headers as one, if they are a list of members with different
/// keys.
fn state<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Box<str>> {
    let members: Vec<&str> = headers
        .into_iter()
        .flat_map(|header| header.split(','))
        .map(|member| member.trim_matches([' ', '\t']))
        .filter(|member| !member.is_empty())
        .collect();
    if members.len() > MAX_MEMBERS {
        return None;
    }
    let mut keys = Vec::with_capacity(members.len());
    for member in &members {
        let (key, value) = member.split_once('=')?;
        if !is_key(key) || !is_value(value) || keys.contains(&key) {
            return None;
        }
        keys.push(key);
    }
    let kept = shortened(members);
    (!kept.is_empty()).then(|| kept.join(",").into())
}

/// Whole members, as many as there is room for: long ones go first, then the last.
fn shortened(mut members: Vec<&str>) -> Vec<&str> {
    let length = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>();
    if length(&members) > MAX_STATE + 1 {
        members.retain(|member| member.len() <= LONG_MEMBER);
    }
    while length(&members) > MAX_STATE + 1 {
        members.pop();
    }
    members
}

/// `key` or `tenant@system`, in small letters, digits and `_-*/`.
fn is_key(key: &str) -> bool {
    let part = |part: &str, longest: usize, first: fn(u8) -> bool| {
        let bytes = part.as_bytes();
        let inner = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
        matches!(bytes, [begin, ..] if first(*begin))
            && bytes.len() <= longest
            && bytes.iter().all(inner)
    };
    let letter = |b: u8| b.is_ascii_lowercase();
    let letter_or_digit = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match key.split_once('@') {
        Some((tenant, system)) => {
            part(tenant, TENANT, letter_or_digit) && part(system, SYSTEM, letter)
        }
        // The second level lets a key begin with a digit.
        None => part(key, KEY, letter_or_digit),
    }
}

/// Printable ASCII without `,` and `=`, not ending in a blank.
fn is_value(value: &str) -> bool {
    let printable = |b: u8| matches!(b, b' '..=b'~') && !matches!(b, b',' | b'=');
    value.len() <= VALUE
        && !value.is_empty()
        && value.bytes().all(printable)
        && !value.ends_with(' ')
}

/// A W3C trace context: a trace, a span of it, and flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: u128,
    /// The span.
    pub span: u64,
    /// Flags.
    pub flags: TraceFlags,
}

/// The flags of a trace context that have a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceFlags(u8);

impl TraceFlags {
    /// Whether the caller has recorded the trace.
    #[must_use]
    pub fn sampled(self) -> bool {
        self.0 & SAMPLED != 0
    }

    /// As the context's last two digits have them.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The same, of a trace that is collected here.
    #[must_use]
    pub fn collected(self) -> Self {
        Self(self.0 | SAMPLED)
    }
}

/// Not a W3C trace context.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` is no trace context: 00, 32 hexadecimal digits, 16 and 2, with `-` between, none of the first two all zero"
)]
pub struct TraceContextError(String);

impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let error = || TraceContextError(text.chars().take(80).collect());
        let lower = |part: &&str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = text.split('-');
        let mut part = |digits| parts.next().filter(|p| p.len() == digits).filter(lower);
        let (version, trace, span, flags) = (part(2), part(32), part(16), part(2));
        // A later version may have more after these, and this one may not.
        let more = parts.next().is_some();
        let (Some(version), Some(trace), Some(span), Some(flags)) = (version, trace, span, flags)
        else {
            return Err(error());
        };
        if version == "ff" || (version == "00" && more) {
            return Err(error());
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| error())?;
        let span = u64::from_str_radix(span, 16).map_err(|_| error())?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| error())?;
        if trace == 0 || span == 0 {
            return Err(error());
        }
        Ok(Self { trace, span, flags: TraceFlags(flags & KNOWN_FLAGS) })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[track_caller]
    fn check(text: &str, good: bool) {
        assert_eq!(text.parse::<TraceContext>().is_ok(), good, "{text}");
    }

    #[test]
    fn a_context_is_taken_only_well_formed() {
        check(GOOD, true);
        assert_eq!(GOOD.parse::<TraceContext>().unwrap().to_string(), GOOD);
        check(&GOOD.to_uppercase(), false);
        check(&GOOD[1..], false);
        check(&format!("{GOOD}-more"), false);
        check(&format!("01{}-more", &GOOD[2..]), true);
        check(&format!("ff{}", &GOOD[2..]), false);
        check("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false);
        check("00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01", false);
        check("", false);
    }

    #[test]
    fn the_flags_with_a_meaning_are_passed_on_and_others_are_not() {
        for (came, goes) in [("00", "00"), ("01", "01"), ("02", "02"), ("03", "03"), ("ff", "03")] {
            let context: TraceContext = format!("{}{came}", &GOOD[..53]).parse().unwrap();
            assert_eq!(context.to_string(), format!("{}{goes}", &GOOD[..53]));
        }
    }

    #[test]
    fn a_context_that_is_there_twice_is_none() {
        assert!(Trace::of_headers([GOOD], []).is_some());
        assert!(Trace::of_headers([GOOD, GOOD], []).is_none());
        assert!(Trace::of_headers([GOOD, "more"], ["a=1"]).is_none());
        assert!(Trace::of_headers([], ["a=1"]).is_none());
    }

    #[track_caller]
    fn state_of(headers: &[&str], expected: Option<&str>) {
        let trace = Trace::of_headers([GOOD], headers.iter().copied()).unwrap();
        assert_eq!(trace.state.as_deref(), expected, "{headers:?}");
    }

    #[test]
    fn what_vendors_added_goes_on_as_one_list_or_not_at_all() {
        state_of(&[], None);
        state_of(
            &["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"],
            Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        );
        state_of(&["a=1", "b=2"], Some("a=1,b=2"));
        state_of(&[" a=1 ,\t, b=2,"], Some("a=1,b=2"));
        state_of(&["fw529a3039@dt=FfAAAAAA,1a-_*/=x y"], Some("fw529a3039@dt=FfAAAAAA,1a-_*/=x y"));
        state_of(&["a=1,a=2"], None);
        state_of(&["A=1"], None);
        state_of(&["a"], None);
        state_of(&["a=1=2"], None);
        state_of(&["=1"], None);
        state_of(&["a=é"], None);
        state_of(&["a@1b=1"], None);
        state_of(&[""], None);
        let list = |n| (0..n).map(|n| format!("k{n}=1")).collect::<Vec<_>>().join(",");
        state_of(&[&list(32)], Some(&list(32)));
        state_of(&[&list(33)], None);
    }

    #[test]
    fn of_a_long_list_the_long_members_go_first_and_then_the_last() {
        let long = format!("long={}", "x".repeat(200));
        let member = |n: usize| format!("k{n:02}={}", "y".repeat(96));
        let short: Vec<_> = (0..5).map(member).collect();
        let whole = format!("{},{long},{}", short[0], short[1..].join(","));
        state_of(&[&whole], Some(&short.join(",")));
        let more: Vec<_> = (0..9).map(member).collect();
        state_of(&[&more.join(",")], Some(&more[..5].join(",")));
        state_of(&[&format!("{long},a=1")], Some(&format!("{long},a=1")));
    }
}
