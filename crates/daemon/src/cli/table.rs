//! A table for a terminal: columns as wide as what is in them.

use reflowd_runtime::printable;

/// Rows of cells under a head.
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
}

/// One cell.
pub(super) struct Cell {
    text: String,
    style: Style,
}

/// How a cell looks where colours are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Head,
    Good,
    Bad,
    Odd,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Head => "\x1b[1m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
            Self::Odd => "\x1b[33m",
        }
    }

    /// The text in this style. Colours are taken out again where they do not belong.
    pub(super) fn paint(self, text: &str) -> String {
        if self == Self::Plain { text.into() } else { format!("{}{text}\x1b[0m", self.code()) }
    }
}

impl Cell {
    /// A cell in a style. What would have an effect on a terminal is escaped.
    pub(super) fn new(text: impl Into<String>, style: Style) -> Self {
        let text: String = text.into();
        Self { text: printable(&text).into_owned(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Style::Plain)
    }
}

impl Table {
    /// A table with nothing but its head.
    pub(super) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|text| Cell::new(*text, Style::Head)).collect()] }
    }

    /// Adds a row of as many cells as the head has.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text.
    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                out.push_str(&cell.style.paint(&cell.text));
                if at + 1 < row.len() {
                    let gap = width - cell.text.chars().count() + 2;
                    out.extend(std::iter::repeat_n(' ', gap));
                }
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new(&["ACTOR", "STATE"]);
        table.row(["a".into(), "active".into()]);
        table.row(["länger".into(), "ok".into()]);
        let text = anstream::adapter::strip_str(&table.text()).to_string();
        assert_eq!(text, "ACTOR   STATE\na       active\nlänger  ok\n");
    }
}
