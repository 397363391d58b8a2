//! Percent-encoding, as URLs and W3C headers have it.

use std::fmt;

/// A `%` that is not followed by two hexadecimal digits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadPercent(String);

impl fmt::Display for BadPercent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not percent-encoding; write a percent sign as %25", self.0)
    }
}

/// Decodes a percent-encoded text.
///
/// # Errors
/// A `%` is not followed by two hexadecimal digits.
pub(crate) fn decoded(text: &str) -> Result<Vec<u8>, BadPercent> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let bad = || BadPercent(format!("%{}", text_start(behind)));
        let [high, low, behind @ ..] = behind else { return Err(bad()) };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return Err(bad()) };
        bytes.push(u8::try_from(high << 4 | low).expect("two digits are a byte"));
        rest = behind;
    }
    Ok(bytes)
}

/// The characters in place of the digits, for the error.
fn text_start(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_stands_for_a_byte() {
        #[track_caller]
        fn check(text: &str, expected: Result<&[u8], &str>) {
            let decoded = decoded(text).map_err(|bad| bad.0);
            assert_eq!(decoded.as_deref().map_err(String::as_str), expected);
        }
        check("plain+text", Ok(b"plain+text"));
        check("p%40ss%3a%C3%bc", Ok("p@ss:\u{fc}".as_bytes()));
        check("%2540", Ok(b"%40"));
        check("%00%ff", Ok(b"\0\xff"));
        check("50%", Err("%"));
        check("50%4", Err("%4"));
        check("50%zz", Err("%zz"));
        check("50%+1", Err("%+1"));
        check("%ü1", Err("%ü1"));
    }
}
