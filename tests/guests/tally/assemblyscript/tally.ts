// Tally in AssemblyScript: adds what comes to a count in its state.

import { answer, config, fail, getState, input, log, setState } from "./abi";

export function get_metadata(): i32 {
  return answer(
    '{"component":"Tally","description":"Adds what comes to a count.",' +
      '"inports":[{"name":"in","description":"What to add.","port_type":"Integer","required":true}],' +
      '"outports":[{"name":"out","description":"The count.","port_type":"Integer"}],' +
      '"config_schema":null}',
  );
}

export function get_version(): i32 {
  return answer('"1.0.0"');
}

export function process(): i32 {
  let value = number(after(after(input(), '"in":'), '"data":'));
  if (value < 0) return fail("in: " + value.toString() + " is negative");

  const step = config("step");
  if (step !== null) value *= number(step);
  const before = getState("count");
  const count = value + (before === null ? 0 : number(before));

  setState("count", count.toString());
  log("count is " + count.toString());
  return answer('{"outputs":{"out":{"type":"Integer","data":' + count.toString() + "}}}");
}

// The number that `text` begins with; 0 where it begins with none.
function number(text: string): i64 {
  const sign = text.startsWith("-") ? 1 : 0;
  let n: i64 = 0;
  for (let i = sign; i < text.length; i++) {
    const digit = text.charCodeAt(i) - 48;
    if (digit < 0 || digit > 9) break;
    n = n * 10 + digit;
  }
  return sign == 1 ? -n : n;
}

// What follows `part` in `text`; nothing where it is not there.
function after(text: string, part: string): string {
  const at = text.indexOf(part);
  return at < 0 ? "" : text.substring(at + part.length);
}
