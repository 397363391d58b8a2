//! Cuts a body that comes in pieces into lines, without copying whole ones.

use bytes::{Bytes, BytesMut};

/// One line, and the piece of memory that it lies in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number, counted from one.
    pub(super) number: u64,
    /// The piece that the line came in.
    pub(super) whole: Bytes,
    /// Where in the piece.
    pub(super) at: std::ops::Range<usize>,
}

impl Line {
    /// The line without the newline and the space around it.
    pub(super) fn text(&self) -> &[u8] {
        self.whole[self.at.clone()].trim_ascii()
    }
}

/// A line is longer than one message may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong {
    /// The line's number.
    pub(super) number: u64,
}

/// The cutter. Feed pieces in, take lines out until there are none, and go on.
pub(super) struct Lines {
    max: usize,
    /// The beginning of a line whose end has not come yet.
    begun: BytesMut,
    /// What has not been cut yet.
    piece: Bytes,
    from: usize,
    number: u64,
}

impl Lines {
    /// A cutter of lines of at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { max, begun: BytesMut::new(), piece: Bytes::new(), from: 0, number: 0 }
    }

    /// How much there is of a line whose end has not come yet, in bytes.
    pub(super) fn begun(&self) -> usize {
        self.begun.len()
    }

    /// The next piece of the body. All lines of the one before must have been taken.
    pub(super) fn feed(&mut self, piece: Bytes) {
        debug_assert_eq!(self.from, self.piece.len(), "lines were left in the last piece");
        self.piece = piece;
        self.from = 0;
    }

    /// The next line whose end has come.
    ///
    /// # Errors
    /// The line in hand is too long already.
    pub(super) fn next(&mut self) -> Result<Option<Line>, TooLong> {
        let rest = &self.piece[self.from..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let length = self.begun.len() + end.unwrap_or(rest.len());
        if length > self.max {
            return Err(TooLong { number: self.number + 1 });
        }
        let Some(end) = end else {
            self.begun.extend_from_slice(rest);
            self.from = self.piece.len();
            return Ok(None);
        };
        let at = self.from..self.from + end;
        self.from = at.end + 1;
        if self.begun.is_empty() {
            return Ok(Some(self.line(self.piece.clone(), at)));
        }
        self.begun.extend_from_slice(&self.piece[at]);
        Ok(Some(self.whole_line()))
    }

    /// The last line, where the body does not end with a newline.
    pub(super) fn last(&mut self) -> Option<Line> {
        (!self.begun.is_empty()).then(|| self.whole_line())
    }

    fn whole_line(&mut self) -> Line {
        // With all of its memory: the next line must not come to lie in what is left of it, or a
        // short one would keep a long one's alive.
        let whole = std::mem::take(&mut self.begun).freeze();
        let at = 0..whole.len();
        self.line(whole, at)
    }

    fn line(&mut self, whole: Bytes, at: std::ops::Range<usize>) -> Line {
        self.number += 1;
        Line { number: self.number, whole, at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_line_does_not_lie_in_the_memory_of_a_long_one() {
        let mut lines = Lines::new(1 << 20);
        let whole = |lines: &mut Lines, pieces: &[&[u8]]| {
            let mut whole = None;
            for piece in pieces {
                lines.feed(Bytes::copy_from_slice(piece));
                while let Some(line) = lines.next().unwrap() {
                    whole = Some(line.whole);
                }
            }
            whole.unwrap()
        };
        // What has grown to its length has about as much room behind it.
        let kib: &[u8] = &[b'x'; 1 << 10];
        let long = whole(&mut lines, &[&vec![kib; 300][..], &[b"\n"]].concat());
        let short = whole(&mut lines, &[b"1", b"2\n"]);
        assert_eq!((long.len(), &*short), (300 << 10, &b"12"[..]));
        let end = long.as_ptr_range().end;
        assert!(!(end..end.wrapping_add(1 << 20)).contains(&short.as_ptr()));
    }

    #[track_caller]
    fn check(pieces: &[&str], expected: &[(u64, &str)]) {
        let mut lines = Lines::new(8);
        let mut got = Vec::new();
        let mut note = |line: Line| {
            got.push((line.number, String::from_utf8(line.text().to_vec()).unwrap()));
        };
        for piece in pieces {
            lines.feed(Bytes::copy_from_slice(piece.as_bytes()));
            while let Some(line) = lines.next().unwrap() {
                note(line);
            }
        }
        lines.last().map(&mut note);
        let got: Vec<_> = got.iter().map(|(n, text)| (*n, text.as_str())).collect();
        assert_eq!(got, expected, "{pieces:?}");
    }

    #[test]
    fn lines_are_the_same_wherever_the_pieces_end() {
        check(&["a\nbc\n"], &[(1, "a"), (2, "bc")]);
        check(&["a\nb", "c\n"], &[(1, "a"), (2, "bc")]);
        check(&["a", "\nbc", "\n"], &[(1, "a"), (2, "bc")]);
        check(&["a", "", "\n", "b", "c"], &[(1, "a"), (2, "bc")]);
        check(&["a\r\n\n b\n"], &[(1, "a"), (2, ""), (3, "b")]);
        check(&[], &[]);
    }

    #[test]
    fn a_line_that_is_too_long_is_known_before_its_end() {
        let mut lines = Lines::new(4);
        lines.feed(Bytes::from_static(b"ok\n123"));
        assert_eq!(lines.next().unwrap().unwrap().text(), b"ok");
        assert_eq!(lines.next(), Ok(None));
        lines.feed(Bytes::from_static(b"45"));
        assert_eq!(lines.next(), Err(TooLong { number: 2 }));
    }
}
