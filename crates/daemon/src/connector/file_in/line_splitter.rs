//! Cuts a stream of bytes into lines.
//!
//! Pure: bytes go in as they are read, lines come out as they are complete.

use bytes::{Buf, Bytes, BytesMut};

/// The longest line, in bytes: the limit for one turn's outputs.
pub(super) const MAX_LINE: usize = 16 << 20;

/// Bytes of a line over the limit that are kept, to identify it.
const BEGINNING: usize = 1024;

/// The byte order mark that some programs put before the first line of a UTF-8 file.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Bytes on their way to becoming lines.
///
/// The byte order mark of a file is skipped, and so are NULs before a line: a file that is cut
/// under a writer that keeps its offset begins with as many as were cut off.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    buffer: BytesMut,
    /// The length of the buffer's beginning that has been searched for an end of line.
    searched: usize,
    /// Lines that have come out, the refused ones included.
    count: u64,
    /// Bytes that have left the buffer.
    past: u64,
    /// The beginning of the current line, if it is over the limit; its rest is discarded.
    refused: Option<Bytes>,
}

/// One line of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SplitLine {
    /// Its number; the first is 1.
    pub(super) number: u64,
    /// The offset of its end, from the beginning of the input.
    pub(super) end: u64,
    /// Its content.
    pub(super) content: LineContent,
}

/// The content of a line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineContent {
    /// All of it.
    Whole(Bytes),
    /// The beginning of a line over [`MAX_LINE`].
    TooLong(Bytes),
}

impl LineSplitter {
    /// Continues after `bytes` bytes with `lines` lines.
    pub(super) fn after(bytes: u64, lines: u64) -> Self {
        Self { past: bytes, count: lines, ..Self::default() }
    }

    /// Adds bytes that were read.
    pub(super) fn feed(&mut self, read: &[u8]) {
        self.buffer.extend_from_slice(read);
        self.skip_nulls();
    }

    /// Skips NULs that follow, without reading them.
    pub(super) fn skip(&mut self, nulls: u64) {
        debug_assert!(self.is_between_lines(), "they would be a part of the line");
        self.past += nulls;
    }

    /// Whether the next byte begins a line.
    pub(super) fn is_between_lines(&self) -> bool {
        self.buffer.is_empty() && self.refused.is_none()
    }

    fn skip_nulls(&mut self) {
        if self.searched == 0 && self.refused.is_none() && self.buffer.first() == Some(&0) {
            let nulls = self.buffer.iter().take_while(|byte| **byte == 0).count();
            self.buffer.advance(nulls);
            self.past += nulls as u64;
        }
    }

    /// The next complete line.
    pub(super) fn next(&mut self) -> Option<SplitLine> {
        self.skip_nulls();
        let end = self.buffer[self.searched..].iter().position(|b| *b == b'\n');
        let Some(end) = end.map(|at| at + self.searched) else {
            self.searched = self.buffer.len();
            if self.searched > MAX_LINE {
                self.refused.get_or_insert_with(|| beginning(&self.buffer));
            }
            if self.refused.is_some() {
                self.past += self.buffer.len() as u64;
                self.buffer.clear();
                self.searched = 0;
            }
            return None;
        };
        self.searched = 0;
        let mut line = self.buffer.split_to(end + 1);
        self.past += line.len() as u64;
        line.truncate(end);
        if line.last() == Some(&b'\r') {
            line.truncate(end - 1);
        }
        Some(self.line(line))
    }

    /// The last line, if it has no end.
    pub(super) fn rest(&mut self) -> Option<SplitLine> {
        self.searched = 0;
        let rest = self.buffer.split();
        self.past += rest.len() as u64;
        (!rest.is_empty() || self.refused.is_some()).then(|| self.line(rest))
    }

    fn line(&mut self, bytes: BytesMut) -> SplitLine {
        self.count += 1;
        let mut rest = &bytes[..];
        if self.count == 1 {
            rest = rest.strip_prefix(BYTE_ORDER_MARK).unwrap_or(rest);
        }
        let content = match self.refused.take() {
            Some(beginning) => LineContent::TooLong(beginning),
            None if bytes.len() > MAX_LINE => LineContent::TooLong(beginning(rest)),
            // Copied, so that a line that waits in a mailbox keeps nothing alive that was read
            // with it, and the buffer, which is as large as the longest line, is used again.
            None => LineContent::Whole(Bytes::copy_from_slice(rest)),
        };
        SplitLine { number: self.count, end: self.past, content }
    }
}

fn beginning(line: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&line[..line.len().min(BEGINNING)])
}

#[cfg(test)]
mod tests {
    use super::*;

    impl SplitLine {
        fn whole(self) -> Option<Bytes> {
            match self.content {
                LineContent::Whole(bytes) => Some(bytes),
                LineContent::TooLong(_) => None,
            }
        }
    }

    fn all(splitter: &mut LineSplitter) -> Vec<(u64, Option<String>)> {
        let mut lines = Vec::new();
        while let Some(line) = splitter.next() {
            let number = line.number;
            let text = line.whole().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
            lines.push((number, text));
        }
        lines
    }

    #[track_caller]
    fn check(reads: &[&str], lines: &[&str], rest: Option<&str>) {
        let mut splitter = LineSplitter::default();
        let mut got = Vec::new();
        for read in reads {
            splitter.feed(read.as_bytes());
            got.extend(all(&mut splitter));
        }
        let numbers: Vec<_> = (1..).take(lines.len()).collect();
        let texts = lines.iter().map(|line| Some((*line).to_string()));
        assert_eq!(got, numbers.into_iter().zip(texts).collect::<Vec<_>>());
        assert_eq!(splitter.rest().and_then(SplitLine::whole).as_deref(), rest.map(str::as_bytes));
    }

    #[test]
    fn lines_come_out_whole_however_they_were_read() {
        check(&[], &[], None);
        check(&["a\nb\n"], &["a", "b"], None);
        check(&["a", "b", "\n", "\nc"], &["ab", ""], Some("c"));
        check(&["a\r\nb\r", "\n"], &["a", "b"], None);
        check(&["\n\n"], &["", ""], None);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        check(&["\u{feff}a\nb\n"], &["a", "b"], None);
        check(&["\u{feff}"], &[], Some(""));
        // Anywhere else it is a character like any other.
        check(&["a\n\u{feff}b\n"], &["a", "\u{feff}b"], None);
        let mut splitter = LineSplitter::after(3, 1);
        splitter.feed("\u{feff}b\n".as_bytes());
        assert_eq!(all(&mut splitter), [(2, Some("\u{feff}b".into()))]);
    }

    #[test]
    fn nulls_before_a_line_are_no_part_of_it() {
        check(&["\0\0", "\0a\n\0b\0\n", "\0"], &["a", "b\0"], None);
        check(&["\0\u{feff}a\n"], &["a"], None);
        let mut splitter = LineSplitter::default();
        // As many as a large log leaves, and not kept.
        for _ in 0..3 {
            splitter.feed(&vec![0; MAX_LINE]);
            assert!(splitter.is_between_lines());
        }
        splitter.skip(1 << 40);
        splitter.feed(b"a\n");
        let line = splitter.next().unwrap();
        let past = (3 * MAX_LINE) as u64 + (1 << 40);
        assert_eq!((line.end, line.whole().as_deref()), (past + 2, Some(&b"a"[..])));
    }

    #[test]
    fn a_line_keeps_nothing_else_alive() {
        for length in [1, 64 << 10, 1 << 20] {
            let mut splitter = LineSplitter::default();
            let (long, next) = ("x".repeat(MAX_LINE), "1".repeat(length));
            splitter.feed(format!("{long}\n{next}\n").as_bytes());
            let read = splitter.buffer.as_ptr_range();
            splitter.next().unwrap();
            let line = splitter.next().unwrap().whole().unwrap();
            assert!(line == next && !read.contains(&line.as_ptr()), "{length}");
        }
    }

    #[test]
    fn a_line_knows_where_it_ends() {
        let mut splitter = LineSplitter::after(100, 7);
        splitter.feed(b"a\r\n\nbc");
        let ends = [splitter.next(), splitter.next(), splitter.rest()];
        let ends: Vec<_> = ends.into_iter().flatten().map(|line| (line.number, line.end)).collect();
        assert_eq!(ends, [(8, 103), (9, 104), (10, 106)]);
    }

    #[test]
    fn a_line_over_the_limit_is_refused_and_not_kept() {
        let mut splitter = LineSplitter::default();
        for _ in 0..3 {
            splitter.feed(&vec![b'x'; MAX_LINE / 2]);
            assert_eq!(splitter.next(), None);
            assert!(splitter.buffer.len() <= MAX_LINE);
        }
        splitter.feed(b"\n");
        let begins = LineContent::TooLong(vec![b'x'; BEGINNING].into());
        assert_eq!(splitter.next().map(|line| (line.number, line.content)), Some((1, begins)));
        splitter.feed(b"b\n");
        assert_eq!(all(&mut splitter), [(2, Some("b".into()))]);
        assert_eq!(splitter.rest(), None);
    }
}
