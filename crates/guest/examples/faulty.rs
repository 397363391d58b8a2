//! Breaks in the way that it is told, to show what a daemon says of a guest that breaks.

use std::hint::black_box;

use reflowd_guest::{Actor, Error, Outcome, Port, Turn, export};

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Faulty {}

impl Actor for Faulty {
    const INPORTS: &[Port] = &[Port::string("way")];
    const OUTPORTS: &[Port] = &[];

    fn process(&mut self, turn: &mut Turn<'_>) -> Outcome {
        match turn.take::<String>("way")?.as_str() {
            "panic" => give_up("the tank is empty"),
            "memory" => take_all(),
            way => Err(Error::new(format!("no such way: {way}"))),
        }
    }
}

export!(Faulty);

#[inline(never)]
fn give_up(why: &str) -> ! {
    panic!("cannot go on: {why}")
}

#[inline(never)]
fn take_all() -> ! {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        all.push(black_box(vec![1; 1 << 20]));
    }
}
