//! Strict JSON: what every reader accepts, close to I-JSON (RFC 7493).
//!
//! Plain JSON allows numbers of any size, unpaired surrogates in strings and unbounded
//! nesting, and readers disagree about them: some round to infinity, some substitute a
//! character, most fail. Holding every entry to one rule means that whatever is accepted can
//! be read by the actor that gets it.
//!
//! Every message is checked, so the common case is a single vectorized scan for anything
//! suspicious; only a text with a suspicious place in it is parsed.

use std::fmt;

use thiserror::Error;

/// How deep arrays and objects may be nested. Common readers stop at 128, and the context of a
/// turn wraps data in a few levels more.
pub const MAX_DEPTH: usize = 100;

/// Characters of a place or number that an error shows.
const SHOWN: usize = 80;

/// Consecutive digits that make a number suspicious. With fewer, and an exponent of at most two
/// digits, it is far below the largest float, which has 309 digits.
const MANY_DIGITS: usize = 200;

/// Something in a JSON text that some readers do not accept.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum JsonFault {
    /// A number outside the range of every numeric type.
    #[error(
        "the number {number}{place} fits neither a 64-bit integer nor a finite 64-bit float; send it as a string"
    )]
    Number {
        /// As it is written.
        number: String,
        /// Where it stands.
        place: JsonPlace,
    },
    /// Arrays and objects nested too deep.
    #[error("the data{place} is nested deeper than {max} levels; flatten it")]
    Depth {
        /// Levels that are taken.
        max: usize,
        /// The place that is too deep.
        place: JsonPlace,
    },
    /// An escape for half of a surrogate pair.
    #[error(
        "the string{place} has {escape}, half of a surrogate pair; write both halves or neither"
    )]
    Surrogate {
        /// As it is written.
        escape: String,
        /// Where the string stands.
        place: JsonPlace,
    },
}

/// A place in a JSON text: a JSON pointer (RFC 6901), empty for the whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPlace(String);

impl fmt::Display for JsonPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => Ok(()),
            false => write!(f, " at `{}`", self.0),
        }
    }
}

/// Checks a text that is known to be JSON.
///
/// # Errors
/// The first fault in it, with its place.
pub fn check(text: &[u8]) -> Result<(), JsonFault> {
    check_to(text, MAX_DEPTH)
}

/// Checks a text that will be embedded `levels` deep in another.
///
/// # Errors
/// The first fault in it, with its place.
pub fn check_within(text: &[u8], levels: usize) -> Result<(), JsonFault> {
    check_to(text, MAX_DEPTH.saturating_sub(levels))
}

/// Checks against another maximum depth.
pub(crate) fn check_to(text: &[u8], max_depth: usize) -> Result<(), JsonFault> {
    let (opened, looks) = look(text);
    if looks == Looks::Odd {
        return read(text, max_depth);
    }
    // The depth never exceeds the number of arrays and objects.
    if opened > max_depth { read_depth(text, max_depth) } else { Ok(()) }
}

/// Bytes scanned per step: few enough for its counts to fit a byte and a marked step to be
/// looked through quickly, enough to vectorize.
const STRIDE: usize = 32;

/// The verdict of the scan.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looks {
    /// No number or string can be at fault.
    Plain,
    /// One may be, and the text has to be parsed.
    Odd,
}

/// Scans a text: an upper bound on its arrays and objects, and whether it looks plain.
fn look(text: &[u8]) -> (usize, Looks) {
    let (mut opened, mut at) = (0, 0);
    while at < text.len() {
        let end = (at + STRIDE).min(text.len());
        let pairs = || text[at..end].iter().zip(&text[at + 1..]);
        let (mut opens, mut marks) = (0_u8, 0_u8);
        for (byte, next) in pairs() {
            // `[` and `{` differ in this bit alone, as do `e` and `E`.
            opens += u8::from(byte | 0x20 == b'{');
            marks |= u8::from(is_mark(*byte, *next));
        }
        opened += usize::from(opens);
        if marks != 0 {
            let marked = pairs().enumerate().filter(|(_, (byte, next))| is_mark(**byte, **next));
            if !marked.into_iter().all(|(i, _)| is_harmless(&text[at + i..])) {
                return (opened, Looks::Odd);
            }
        }
        at = end;
    }
    // A run of that many digits covers at least one of these places.
    let places = (0..text.len()).step_by(MANY_DIGITS - 1).skip(1);
    let digits = places.filter(|at| text[*at].is_ascii_digit());
    match digits.into_iter().all(|at| is_short(text, at)) {
        true => (opened, Looks::Plain),
        false => (opened, Looks::Odd),
    }
}

/// Whether two bytes may be a mantissa's end and an exponent's start, or begin a `\u` escape.
#[inline]
fn is_mark(byte: u8, next: u8) -> bool {
    let exponent = (byte.wrapping_sub(b'0') < 10) & (next | 0x20 == b'e');
    let escape = (byte == b'\\') & (next == b'u');
    exponent | escape
}

/// Whether the bytes after a mark show that it is harmless.
#[inline]
fn is_harmless(marked: &[u8]) -> bool {
    match marked {
        [b'\\', _, b'd' | b'D', b'8' | b'9' | b'a'..=b'f' | b'A'..=b'F', ..] => false,
        [b'\\', ..] | [_, _, b'-', ..] => true,
        // At most two digits, or no exponent at all.
        [_, _, a, b, ..] if !b.is_ascii_digit() || !(a.is_ascii_digit() || *a == b'+') => true,
        [_, _, b'+', _, _, c, ..] | [_, _, _, _, c, ..] => !c.is_ascii_digit(),
        _ => true,
    }
}

/// Whether the run of digits around a place is too short to overflow.
fn is_short(text: &[u8], at: usize) -> bool {
    let before = text[..at].iter().rev().take(MANY_DIGITS);
    let behind = text[at..].iter().take(MANY_DIGITS);
    before.take_while(|byte| byte.is_ascii_digit()).count()
        + behind.take_while(|byte| byte.is_ascii_digit()).count()
        < MANY_DIGITS
}

/// Parses a text that is JSON and finds the first fault.
fn read(text: &[u8], max_depth: usize) -> Result<(), JsonFault> {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = text.get(at) {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                if depth > max_depth {
                    return Err(JsonFault::Depth { max: max_depth, place: place_of(text, at) });
                }
                at += 1;
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            b'"' => {
                let end = string_end(text, at);
                if let Some(escape) = half_pair(&text[at..end]) {
                    let escape = String::from_utf8_lossy(escape).into_owned();
                    return Err(JsonFault::Surrogate { escape, place: place_of(text, at) });
                }
                at = end;
            }
            b'-' | b'0'..=b'9' => {
                let is_part =
                    |byte: &&u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
                let length = text[at..].iter().take_while(is_part).count();
                let number = &text[at..at + length];
                if !is_finite(number) {
                    let number = shortened(&String::from_utf8_lossy(number));
                    return Err(JsonFault::Number { number, place: place_of(text, at) });
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// Parses a text that is JSON for its depth only.
fn read_depth(text: &[u8], max_depth: usize) -> Result<(), JsonFault> {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string_end(text, at);
                continue;
            }
            b'[' | b'{' => {
                depth += 1;
                if depth > max_depth {
                    return Err(JsonFault::Depth { max: max_depth, place: place_of(text, at) });
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Whether a number fits a finite 64-bit float.
fn is_finite(number: &[u8]) -> bool {
    if number.len() < MANY_DIGITS && !number.iter().any(|byte| matches!(byte, b'e' | b'E')) {
        return true;
    }
    let number = std::str::from_utf8(number).ok().and_then(|text| text.parse::<f64>().ok());
    number.is_some_and(f64::is_finite)
}

/// The index after the string that begins at `begin`.
pub(crate) fn string_end(text: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// The first unpaired surrogate escape in a string.
fn half_pair(string: &[u8]) -> Option<&[u8]> {
    let unit = |at: usize| {
        let [b'\\', b'u', digits @ ..] = string.get(at..at + 6)? else { return None };
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = string[at..].iter().position(|byte| *byte == b'\\') {
        at += found;
        match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => return string.get(at..at + 6),
            Some(_) => at += 6,
            None => at = (at + 2).min(string.len()),
        }
    }
    None
}

/// The JSON pointer to the value that begins at byte `target`.
fn place_of(text: &[u8], target: usize) -> JsonPlace {
    enum Around<'t> {
        Array(usize),
        Object(Option<&'t [u8]>),
    }
    let (mut at, mut around) = (0, Vec::new());
    while at < target {
        let byte = text[at];
        let mut next = at + 1;
        match byte {
            b'[' => around.push(Around::Array(0)),
            b'{' => around.push(Around::Object(None)),
            b']' | b'}' => drop(around.pop()),
            b',' => match around.last_mut() {
                Some(Around::Array(index)) => *index += 1,
                Some(Around::Object(key)) => *key = None,
                None => {}
            },
            b'"' => {
                next = string_end(text, at);
                if let Some(Around::Object(key @ None)) = around.last_mut() {
                    *key = Some(&text[at..next]);
                }
            }
            _ => {}
        }
        at = next;
    }
    let step = |around: &Around<'_>| match around {
        Around::Array(index) => Some(format!("/{index}")),
        Around::Object(key) => {
            let key = (*key)?;
            let text = serde_json::from_slice::<String>(key)
                .unwrap_or_else(|_| String::from_utf8_lossy(key).trim_matches('"').to_owned());
            Some(format!("/{}", text.replace('~', "~0").replace('/', "~1")))
        }
    };
    JsonPlace(shortened(&around.iter().map_while(step).collect::<String>()))
}

/// The beginning of a text, for an error.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn is_taken(text: &str) {
        assert!(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "no JSON: {text}");
        assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
        assert_eq!(read(text.as_bytes(), MAX_DEPTH), Ok(()), "{text}");
    }

    #[track_caller]
    fn is_refused(text: &str, expected: &str) {
        assert!(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "no JSON: {text}");
        let fault = check(text.as_bytes()).expect_err(text);
        assert!(fault.to_string().starts_with(expected), "{text}: {fault}");
    }

    #[test]
    fn a_number_fits_an_integer_or_a_finite_float() {
        for text in [
            "0",
            "-1",
            "9223372036854775807",
            "123456789012345678901234567890",
            "1e2",
            "1E308",
            "1.7976931348623157e308",
            "-1.7976931348623157E+308",
            "1e-400",
            "[0e999999999]",
            r#"{"a":[1e300, -2.5E-7],"b":"1e400"}"#,
            r#"["1e400","is 1e400 or -9e999",{"2e999":3}]"#,
            r#""\"1e400""#,
            r#"["1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e", "9e+-9"]"#,
            "[1.2345678901234567890123456789e5]",
            r#""550e8400-e29b-41d4-a716-446655440000""#,
        ] {
            is_taken(text);
        }
        is_taken(&format!("1{}", "0".repeat(308)));
        is_taken(&format!("0.{}", "1".repeat(5000)));
        is_taken(&format!("[\"{}\"]", "1".repeat(5000)));
        is_taken(&format!("{}e99", "1".repeat(199)));
        is_refused(&format!("{}e99", "1".repeat(215)), "the number 1111");
        is_refused("1e400", "the number 1e400 fits neither a 64-bit integer nor a finite");
        is_refused(" -1E+309 ", "the number -1E+309 fits neither");
        is_refused("1.8e308", "the number 1.8e308 fits");
        is_refused("[1,2,1e999]", "the number 1e999 at `/2` fits");
        is_refused(
            r#"{"a":{"b/c":[0,{"~":"x","d\"":1e400}]},"z":2e400}"#,
            "the number 1e400 at `/a/b~1c/1/d\"` fits",
        );
        is_refused(&format!("1e{}999", "0".repeat(400)), "the number 1e000");
        is_refused(r#"["9e1",9e999]"#, "the number 9e999 at `/1` fits");
        let long = format!("2{}", "0".repeat(308));
        is_refused(&long, &format!("the number {}… fits", &long[..80]));
        is_refused(&format!("[[], {long}.5]"), "the number 2000");
        for before in 0..400 {
            is_refused(&format!("{}-{long}", " ".repeat(before)), "the number -2000");
            is_refused(&format!("{}1e400", " ".repeat(before)), "the number 1e400");
        }
    }

    #[test]
    fn a_string_is_unicode() {
        for text in [
            r#""\ud83d\ude00""#,
            r#""\uD83D\uDE00\uFFFF\u0000""#,
            r#""\\ud800""#,
            r#"["\\\ud83d\ude00","\\\\ude00","é\"\\"]"#,
        ] {
            is_taken(text);
        }
        is_refused(r#""\ud83d""#, r"the string has \ud83d, half of a surrogate pair");
        is_refused(r#""\ude00\ud83d""#, r"the string has \ude00,");
        is_refused(r#""\ud83d\u0041""#, r"the string has \ud83d,");
        is_refused(r#""\ud83dx\ude00""#, r"the string has \ud83d,");
        is_refused(r#""\\\uDBFF""#, r"the string has \uDBFF,");
        is_refused(r#"{"a":["b","\udfff"]}"#, r"the string at `/a/1` has \udfff,");
        is_refused(r#"{"a":{"\udc00":1}}"#, r"the string at `/a` has \udc00,");
        for before in 0..300 {
            is_refused(&format!("\"{}\\ud800\"", "x".repeat(before)), "the string has");
        }
    }

    #[test]
    fn data_is_nested_a_hundred_levels_at_most() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        is_taken(&nested(MAX_DEPTH));
        is_refused(&nested(MAX_DEPTH + 1), "the data at `/0/0/0");
        let objects = |depth: usize| format!("{}0{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        is_taken(&objects(MAX_DEPTH));
        is_refused(&objects(MAX_DEPTH + 1), "the data at `/a/a");
        // However many there are side by side, or in strings.
        is_taken(&format!("[{}[]]", "[[{}]],".repeat(1000)));
        is_taken(&format!("[\"{}\"]", "[".repeat(1000)));
        is_refused(&format!("[{}{}]", "[],".repeat(1000), nested(100_000)), "the data at `/1000/0");
    }

    /// JSON texts with something of each kind in them.
    fn texts() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("1e400".to_owned()),
            Just("1e30".to_owned()),
            Just("9".repeat(310)),
            Just("9".repeat(308)),
            any::<i64>().prop_map(|n| n.to_string()),
            Just(r#""\ud800""#.to_owned()),
            Just(r#""\ud83d\ude00""#.to_owned()),
            "[a-e0-9\\[{ ]{0,40}".prop_map(|text| format!("{text:?}")),
            (95..105_usize).prop_map(|n| format!("{}{}", "[".repeat(n), "]".repeat(n))),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5)
                    .prop_map(|list| format!("[{}]", list.join(", "))),
                prop::collection::vec(("[a-f]{0,3}", inner), 0..5).prop_map(|list| {
                    let pairs = list.iter().map(|(key, value)| format!("\"{key}\":{value}"));
                    format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn looking_for_suspicion_and_reading_come_to_the_same(text in texts()) {
            prop_assert_eq!(check(text.as_bytes()), read(text.as_bytes(), MAX_DEPTH));
        }

        #[test]
        fn what_is_taken_is_taken_by_a_strict_reader(text in texts()) {
            let strict = serde_json::from_str::<serde_json::Value>(&text);
            if check(text.as_bytes()).is_ok() {
                prop_assert!(strict.is_ok(), "{:?}", strict);
            }
        }
    }
}
