// Breaks in the way that it is told, to show what a daemon says of a guest that breaks.
import { Turn, metadata } from "./reflowd";

export function get_metadata(): i32 {
  return metadata("Faulty", ["way:String"], []);
}

export function process(): i32 {
  const turn = new Turn();
  const way = turn.data("way");
  if (way == '"panic"') throw new Error("cannot go on: the tank is empty");
  if (way == '"memory"') takeAll();
  turn.fail("no such way: " + way);
  return turn.end();
}

function takeAll(): void {
  const all: Uint8Array[] = [];
  while (true) all.push(new Uint8Array(1 << 20));
}
