//! Content codings: compressed request bodies (RFC 9110, 8.4).
//!
//! A few kilobytes can decompress to gigabytes, so the size limit applies to the output and is
//! checked after each piece of it.

use std::io::{self, Read};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use brotli_decompressor::Decompressor;
use flate2::read::MultiGzDecoder;

use crate::admin::Problem;

/// The accepted codings, as an `Accept-Encoding` header.
const TAKEN: HeaderValue = HeaderValue::from_static("gzip, br");

/// Bytes decompressed between two checks of the limit.
const PIECE: usize = 64 << 10;

/// The content coding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// None.
    Plain,
    /// `gzip`.
    Gzip,
    /// `br`.
    Brotli,
}

impl Coding {
    /// The coding that a request's headers declare.
    ///
    /// # Errors
    /// It is unknown, or several are stacked; the problem lists the accepted ones.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut coding = Self::Plain;
        for value in headers.get_all(header::CONTENT_ENCODING) {
            for name in value.as_bytes().split(|byte| *byte == b',') {
                let next = match name.trim_ascii().to_ascii_lowercase().as_slice() {
                    b"" | b"identity" => continue,
                    b"gzip" | b"x-gzip" => Self::Gzip,
                    b"br" => Self::Brotli,
                    _ => return Err(not_taken(TAKEN)),
                };
                if coding != Self::Plain {
                    return Err(not_taken(TAKEN));
                }
                coding = next;
            }
        }
        Ok(coding)
    }

    /// Decompresses `packed` piece by piece until `take` fails. Blocks.
    ///
    /// # Errors
    /// The error of `take`, or one of kind [`io::ErrorKind::InvalidData`] when the body does not
    /// match its coding.
    pub(crate) fn unpack<E: From<io::Error>>(
        self,
        packed: &[u8],
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::Plain => pieces(packed, "text", take),
            Self::Gzip => pieces(MultiGzDecoder::new(packed), "gzip", take),
            Self::Brotli => pieces(Decompressor::new(packed, PIECE), "br", take),
        }
    }
}

/// Refuses compressed bodies.
///
/// # Errors
/// The body has a content coding.
pub(crate) fn must_be_plain(headers: &HeaderMap) -> Result<(), Problem> {
    match Coding::of(headers) {
        Ok(Coding::Plain) => Ok(()),
        _ => Err(not_taken(HeaderValue::from_static("identity"))),
    }
}

fn not_taken(taken: HeaderValue) -> Problem {
    let names = taken.to_str().expect("codings are text");
    let why = format!("send the body with one of these encodings, or none: {names}");
    let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Problem::new(status, "content-encoding", "unknown content encoding", why)
        .with_header(header::ACCEPT_ENCODING, taken)
}

fn pieces<E: From<io::Error>>(
    mut from: impl Read,
    name: &str,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => take(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let why = format!("the body is not whole, or not {name} as it says: {error}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why).into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use axum::response::IntoResponse as _;
    use flate2::{Compression, write::GzEncoder};

    use super::*;

    /// `{"n":1}`, as Google's encoder packs it.
    const BROTLI: &[u8] = &[0x0b, 0x03, 0x80, b'{', b'"', b'n', b'"', b':', b'1', b'}', 0x03];

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(text).unwrap();
        packed.finish().unwrap()
    }

    fn unpacked(coding: Coding, packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        coding.unpack(packed, |piece| {
            all.extend_from_slice(piece);
            io::Result::Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn what_was_packed_comes_out() {
        let text = b"{\"n\":1}";
        assert_eq!(unpacked(Coding::Plain, text).unwrap(), text);
        assert_eq!(unpacked(Coding::Gzip, &gzip(text)).unwrap(), text);
        assert_eq!(unpacked(Coding::Brotli, BROTLI).unwrap(), text);
        // One behind the other is one.
        let two = [gzip(b"{\"n\""), gzip(b":1}")].concat();
        assert_eq!(unpacked(Coding::Gzip, &two).unwrap(), text);
    }

    #[test]
    fn what_is_cut_short_or_something_else_is_an_error() {
        let packed = gzip(&b"x".repeat(1000));
        for (coding, packed) in [
            (Coding::Gzip, &packed[..packed.len() - 1]),
            (Coding::Gzip, &packed[..5]),
            (Coding::Gzip, b""),
            (Coding::Gzip, b"{\"n\":1}"),
            (Coding::Brotli, &BROTLI[..BROTLI.len() - 2]),
            (Coding::Brotli, b"{\"n\":1}"),
        ] {
            let error = unpacked(coding, packed).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{coding:?} {packed:?}");
            assert!(error.to_string().starts_with("the body is not whole, or not "), "{error}");
        }
    }

    #[test]
    fn no_more_is_unpacked_than_is_taken() {
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(bomb.len() < 100 << 10, "{}", bomb.len());
        let mut came = 0;
        let ended = Coding::Gzip.unpack(&bomb, |piece| {
            came += piece.len();
            if came > 1 << 20 {
                Err(io::ErrorKind::FileTooLarge.into())
            } else {
                io::Result::Ok(())
            }
        });
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(came <= (1 << 20) + PIECE, "{came}");
    }

    #[track_caller]
    fn check(values: &[&str], expected: Result<Coding, &str>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::CONTENT_ENCODING, value.parse().unwrap());
        }
        let found = Coding::of(&headers).map_err(|problem| {
            let response = problem.into_response();
            assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
            response.headers()[header::ACCEPT_ENCODING].to_str().unwrap().to_owned()
        });
        assert_eq!(found.as_ref().copied().map_err(String::as_str), expected, "{values:?}");
        assert_eq!(must_be_plain(&headers).is_ok(), expected == Ok(Coding::Plain), "{values:?}");
    }

    #[test]
    fn a_coding_is_one_that_is_known() {
        check(&[], Ok(Coding::Plain));
        check(&["identity"], Ok(Coding::Plain));
        check(&["gzip"], Ok(Coding::Gzip));
        check(&["X-GZIP"], Ok(Coding::Gzip));
        check(&[" br "], Ok(Coding::Brotli));
        check(&["identity, gzip"], Ok(Coding::Gzip));
        check(&["deflate"], Err("gzip, br"));
        check(&["zstd"], Err("gzip, br"));
        check(&["gzip, br"], Err("gzip, br"));
        check(&["gzip", "gzip"], Err("gzip, br"));
    }
}
