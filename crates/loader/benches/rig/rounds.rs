//! Several ways to have the same work done, measured side by side.
//!
//! The machine may be noisy, and its noise changes from second to second. So every
//! way has its turn in every round, each round begins with another way, and two
//! ways are held against each other within one round: what counts is the median of
//! these ratios.

#![allow(dead_code, reason = "each benchmark takes what it needs")]

use std::time::Duration;

/// One way to have the work done.
pub(crate) struct Way {
    name: String,
    /// How often the work is done in one round.
    times: u64,
    run: Box<dyn FnMut(u64) -> Duration>,
}

impl Way {
    /// `run` does the work so many times, and says how long that took.
    pub(crate) fn new(
        name: impl Into<String>,
        times: u64,
        run: impl FnMut(u64) -> Duration + 'static,
    ) -> Self {
        Self { name: name.into(), times, run: Box::new(run) }
    }
}

/// What the rounds gave: microseconds for one piece of work.
pub(crate) struct Rounds {
    names: Vec<String>,
    rounds: Vec<Vec<f64>>,
}

impl Rounds {
    /// Takes so many rounds, and one before them that does not count. Of several
    /// ways only those take part whose names hold `filter`.
    pub(crate) fn take(mut ways: Vec<Way>, rounds: usize, filter: &str) -> Self {
        ways.retain(|way| way.name.contains(filter));
        let mut taken = Vec::new();
        for round in 0..=rounds {
            let mut micros = vec![0.0; ways.len()];
            for n in 0..ways.len() {
                let at = (n + round) % ways.len();
                let way = &mut ways[at];
                let times = u32::try_from(way.times).expect("a round is short");
                micros[at] = (way.run)(way.times).as_secs_f64() * 1e6 / f64::from(times);
            }
            taken.push(micros);
        }
        taken.remove(0);
        Self { names: ways.into_iter().map(|way| way.name).collect(), rounds: taken }
    }

    /// The median microseconds of a way; none if it did not take part.
    pub(crate) fn micros(&self, name: &str) -> Option<f64> {
        let at = self.place(name)?;
        Some(quartiles(self.rounds.iter().map(|round| round[at]))[1])
    }

    /// How many times as long `slow` takes as `fast`: the median over the rounds.
    pub(crate) fn ratio(&self, slow: &str, fast: &str) -> Option<f64> {
        let (slow, fast) = (self.place(slow)?, self.place(fast)?);
        Some(quartiles(self.rounds.iter().map(|round| round[slow] / round[fast]))[1])
    }

    /// Prints every way: quartiles, pieces of work a second, and how many times as
    /// long it takes as the way `beside`.
    #[expect(clippy::print_stdout, reason = "a benchmark's table is what it is run for")]
    pub(crate) fn print(&self, work: &str, beside: &str) {
        let (head, rate) = (format!("µs a {work}"), format!("{work}s/s"));
        println!("\n{:42} {head:>12} {:>23} {rate:>12} {:>10}", "", "quartiles", "times");
        for (at, name) in self.names.iter().enumerate() {
            let [low, mid, high] = quartiles(self.rounds.iter().map(|round| round[at]));
            let (spread, rate) = (format!("{low:.2} to {high:.2}"), 1e6 / mid);
            let ratio = self.ratio(name, beside).map_or(String::new(), |r| format!("{r:.2}"));
            println!("{name:42} {mid:>12.2} {spread:>23} {rate:>12.0} {ratio:>10}");
        }
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }
}

fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}
