// Adds what comes to a sum: an actor that keeps state, logs and puts out.
import { Turn, metadata } from "./reflowd";

export function get_metadata(): i32 {
  return metadata("Sum", ["add:Integer"], ["sum:Integer"]);
}

export function process(): i32 {
  const turn = new Turn();
  const total = turn.stateInteger("total") + turn.takeInteger("add");
  turn.setState("total", total.toString());
  turn.log("the sum is " + total.toString());
  turn.send("sum", "Integer", total.toString());
  return turn.end();
}
