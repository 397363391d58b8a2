//! Cuts a stream of bytes into lines.
//!
//! Pure: bytes go in as they are read, lines come out as they are complete.

use bytes::{Bytes, BytesMut};

/// The longest line, in bytes: as much as one turn may put out.
pub(super) const MAX_LINE: usize = 16 << 20;

/// Bytes that are to become lines.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    buffer: BytesMut,
    /// How much of the buffer is known to have no end of line.
    searched: usize,
    /// Lines that have come out, the refused ones included.
    count: u64,
    /// Bytes that are in the buffer no more.
    past: u64,
    /// The line that is being read is over the limit; its rest is not kept.
    refused: bool,
}

/// One line of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Which one it is; the first is 1.
    pub(super) number: u64,
    /// The bytes up to its end, its end of line and all lines before it included.
    pub(super) end: u64,
    /// Its bytes without the end of line, or `None` where it is over [`MAX_LINE`].
    pub(super) bytes: Option<Bytes>,
}

impl LineSplitter {
    /// For what follows `bytes` in which there were `lines`.
    pub(super) fn after(bytes: u64, lines: u64) -> Self {
        Self { past: bytes, count: lines, ..Self::default() }
    }

    /// The end of what was read, to be filled further.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next complete line.
    pub(super) fn next(&mut self) -> Option<Line> {
        let end = self.buffer[self.searched..].iter().position(|b| *b == b'\n');
        let Some(end) = end.map(|at| at + self.searched) else {
            self.searched = self.buffer.len();
            if self.searched > MAX_LINE {
                self.refused = true;
            }
            if self.refused {
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

    /// What is left when nothing more comes: a last line without an end.
    pub(super) fn rest(&mut self) -> Option<Line> {
        self.searched = 0;
        let rest = self.buffer.split();
        self.past += rest.len() as u64;
        (!rest.is_empty() || self.refused).then(|| self.line(rest))
    }

    fn line(&mut self, bytes: BytesMut) -> Line {
        self.count += 1;
        let refused = std::mem::take(&mut self.refused) || bytes.len() > MAX_LINE;
        // Copied, so that a line that waits in a mailbox keeps nothing alive that was read with
        // it, and the buffer, which is as large as the longest line, is used again.
        let bytes = (!refused).then(|| Bytes::copy_from_slice(&bytes));
        Line { number: self.count, end: self.past, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(splitter: &mut LineSplitter) -> Vec<(u64, Option<String>)> {
        let mut lines = Vec::new();
        while let Some(line) = splitter.next() {
            let text = line.bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
            lines.push((line.number, text));
        }
        lines
    }

    #[track_caller]
    fn check(reads: &[&str], lines: &[&str], rest: Option<&str>) {
        let mut splitter = LineSplitter::default();
        let mut got = Vec::new();
        for read in reads {
            splitter.buffer().extend_from_slice(read.as_bytes());
            got.extend(all(&mut splitter));
        }
        let numbers: Vec<_> = (1..).take(lines.len()).collect();
        let texts = lines.iter().map(|line| Some((*line).to_string()));
        assert_eq!(got, numbers.into_iter().zip(texts).collect::<Vec<_>>());
        assert_eq!(splitter.rest().and_then(|line| line.bytes).as_deref(), rest.map(str::as_bytes));
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
    fn a_line_keeps_nothing_else_alive() {
        for length in [1, 64 << 10, 1 << 20] {
            let mut splitter = LineSplitter::default();
            let (long, next) = ("x".repeat(MAX_LINE), "1".repeat(length));
            splitter.buffer().extend_from_slice(format!("{long}\n{next}\n").as_bytes());
            let read = splitter.buffer().as_ptr_range();
            splitter.next().unwrap();
            let line = splitter.next().unwrap().bytes.unwrap();
            assert!(line == next && !read.contains(&line.as_ptr()), "{length}");
        }
    }

    #[test]
    fn a_line_knows_where_it_ends() {
        let mut splitter = LineSplitter::after(100, 7);
        splitter.buffer().extend_from_slice(b"a\r\n\nbc");
        let ends = [splitter.next(), splitter.next(), splitter.rest()];
        let ends: Vec<_> = ends.into_iter().flatten().map(|line| (line.number, line.end)).collect();
        assert_eq!(ends, [(8, 103), (9, 104), (10, 106)]);
    }

    #[test]
    fn a_line_over_the_limit_is_refused_and_not_kept() {
        let mut splitter = LineSplitter::default();
        for _ in 0..3 {
            splitter.buffer().extend_from_slice(&vec![b'x'; MAX_LINE / 2]);
            assert_eq!(splitter.next(), None);
            assert!(splitter.buffer().len() <= MAX_LINE);
        }
        splitter.buffer().extend_from_slice(b"\nb\n");
        assert_eq!(all(&mut splitter), [(1, None), (2, Some("b".into()))]);
        assert_eq!(splitter.rest(), None);
    }
}
