//! Text in the data folder that shows every change of it, down to a single bit.
//!
//! Sealed text is a JSON array on lines of its own: a title that says what it is and in
//! which form, a checksum, and the content as it was given. So other tools can still read
//! it. Every byte of it is compared: there is no bit that can flip and go unnoticed, and
//! none that makes sealed text look like the bare objects that former versions wrote.

use std::io::{self, Write};

use reflowd_runtime::Digest;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The length of a SHA-256 in hexadecimal digits.
const CHECKSUM: usize = 64;

/// Text whose seal is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// The kind and version of the text.
    pub title: &'a str,
    /// The text that was sealed, byte for byte.
    pub content: &'a [u8],
}

/// Text that is not sealed, or no longer what was sealed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("its checksum does not match")]
pub struct BrokenSeal;

/// Writes JSON text sealed.
///
/// # Errors
/// The writer's.
///
/// # Panics
/// The title has characters that JSON escapes.
pub fn seal(title: &str, content: &[u8], out: &mut impl Write) -> io::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == ' ' || c == '-';
    assert!(title.chars().all(plain), "a title is plain words");
    writeln!(out, "[\"{title}\",\"{}\",", checksum(title, content))?;
    out.write_all(content)?;
    out.write_all(b"\n]\n")
}

/// Takes the seal off.
///
/// # Errors
/// The text is not what [`seal`] made, to the last bit.
pub fn unseal(text: &[u8]) -> Result<Sealed<'_>, BrokenSeal> {
    let parts = || {
        let rest = text.strip_prefix(b"[\"")?;
        let (title, rest) = rest.split_at(rest.iter().position(|byte| *byte == b'"')?);
        let rest = rest.strip_prefix(b"\",\"")?;
        let (checksum, rest) = rest.split_at_checked(CHECKSUM)?;
        let content = rest.strip_prefix(b"\",\n")?.strip_suffix(b"\n]\n")?;
        Some((str::from_utf8(title).ok()?, checksum, content))
    };
    let (title, found, content) = parts().ok_or(BrokenSeal)?;
    if found != checksum(title, content).as_bytes() {
        return Err(BrokenSeal);
    }
    Ok(Sealed { title, content })
}

fn checksum(title: &str, content: &[u8]) -> String {
    // Titles have no line breaks, so no two pairs are hashed as the same bytes.
    let hash = Sha256::new().chain_update(title).chain_update("\n").chain_update(content);
    Digest::new(hash.finalize().into()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &[u8] = br#"{"count":7}"#;

    fn sealed() -> Vec<u8> {
        let mut text = Vec::new();
        seal("reflowd test 1", CONTENT, &mut text).unwrap();
        text
    }

    #[test]
    fn sealed_text_comes_back_and_is_json() {
        let text = sealed();
        assert_eq!(unseal(&text), Ok(Sealed { title: "reflowd test 1", content: CONTENT }));
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&json[0], &json[2]["count"]), (&"reflowd test 1".into(), &7.into()));
    }

    #[test]
    fn no_bit_flips_unseen_and_none_makes_a_bare_object() {
        let text = sealed();
        for bit in 0..text.len() * 8 {
            let mut damaged = text.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(&damaged), Err(BrokenSeal), "bit {bit}");
            let object = serde_json::from_slice::<serde_json::Map<_, _>>(&damaged);
            assert!(object.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn text_cut_short_or_with_more_behind_it_is_not_sealed() {
        let text = sealed();
        for length in 0..text.len() {
            assert_eq!(unseal(&text[..length]), Err(BrokenSeal), "{length}");
        }
        assert_eq!(unseal(&[&text[..], b"\n"].concat()), Err(BrokenSeal));
        assert_eq!(unseal(CONTENT), Err(BrokenSeal));
    }
}
