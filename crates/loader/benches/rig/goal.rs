//! A figure beside what it ought to be, printed so that a script can find it.

#![allow(dead_code, reason = "each benchmark takes what it needs")]

/// What a figure ought to be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    Below(f64),
}

impl Goal {
    fn is_reached(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(bound) => figure >= bound,
            Self::Below(bound) => figure < bound,
        }
    }

    /// Prints `goal | what | figure | bound | reached or missed`.
    #[expect(clippy::print_stdout, reason = "figures are what a benchmark is run for")]
    pub(crate) fn hold(self, what: &str, figure: f64, unit: &str) {
        let (word, bound) = match self {
            Self::AtLeast(bound) => ("at least", bound),
            Self::Below(bound) => ("under", bound),
        };
        let verdict = if self.is_reached(figure) { "reached" } else { "missed" };
        let (figure, bound) = (short(figure), short(bound));
        println!("goal | {what} | {figure}{unit} | {word} {bound}{unit} | {verdict}");
    }
}

/// A number with as many digits as mean something.
fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 || size == size.trunc() => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 0.1 => format!("{number:.2}"),
        _ => format!("{number:.4}"),
    }
}
