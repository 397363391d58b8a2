//! Adds what comes to a sum: an actor that keeps state, logs and puts out.

use reflowd_guest::{Actor, Outcome, Port, Turn, export};

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Sum {
    total: i64,
}

impl Actor for Sum {
    const INPORTS: &[Port] = &[Port::integer("add")];
    const OUTPORTS: &[Port] = &[Port::integer("sum")];

    fn process(&mut self, turn: &mut Turn<'_>) -> Outcome {
        self.total += turn.take::<i64>("add")?;
        turn.info(format!("the sum is {}", self.total));
        turn.send("sum", &self.total)
    }
}

export!(Sum);

#[cfg(test)]
mod tests {
    use reflowd_guest::Bench;

    use super::*;

    #[test]
    fn it_adds_and_says_so() {
        let mut sum = Bench::<Sum>::new();
        sum.process("add", 2).unwrap();
        sum.process("add", 3).unwrap();
        assert_eq!(sum.sent::<i64>("sum"), [2, 5]);
        assert_eq!(sum.lines()[1].text, "the sum is 5");
        assert_eq!(sum.state().total, 5);
    }

    #[test]
    fn what_is_no_number_leaves_the_sum_as_it_was() {
        let mut sum = Bench::<Sum>::new().with_state(&Sum { total: 7 });
        sum.process("add", "many").unwrap_err();
        assert_eq!(sum.state().total, 7);
    }
}
