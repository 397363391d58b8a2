// Actors for reflowd in AssemblyScript, in one file that depends on nothing.
//
// A turn reads one context in JSON and asks the host for the rest. What goes wrong is
// remembered, and `end()` makes it the turn's error; nothing of a failed turn happens.

@external("extism:host/env", "alloc") declare function alloc(length: u64): u64;
@external("extism:host/env", "length") declare function length(block: u64): u64;
@external("extism:host/env", "load_u8") declare function load_u8(at: u64): u32;
@external("extism:host/env", "store_u8") declare function store_u8(at: u64, byte: u32): void;
@external("extism:host/env", "input_length") declare function input_length(): u64;
@external("extism:host/env", "input_load_u8") declare function input_load_u8(at: u64): u32;
@external("extism:host/env", "output_set") declare function output_set(block: u64, length: u64): void;
@external("extism:host/env", "error_set") declare function error_set(block: u64): void;
@external("extism:host/env", "log_info") declare function log_info(text: u64): void;
@external("extism:host/user", "__send_output") declare function __send_output(outputs: u64): void;
@external("extism:host/user", "__get_state") declare function __get_state(key: u64): u64;
@external("extism:host/user", "__set_state") declare function __set_state(key: u64, value: u64): void;

// The messages that a turn takes, and what it can do with the world.
export class Turn {
  private context: string = input();
  private mistake: string = "";

  // The data that came by `port`, as JSON; empty where none came.
  data(port: string): string {
    return member(member(member(this.context, "payload"), port), "data");
  }

  // The whole number that came by `port`.
  takeInteger(port: string): i64 {
    return this.integer(this.data(port), "no whole number came by `" + port + "`");
  }

  // A value of the actor's configuration, as JSON; empty where there is none.
  config(key: string): string {
    return member(member(member(this.context, "config"), "config"), key);
  }

  // A whole number of the state; 0 where there is none yet.
  stateInteger(key: string): i64 {
    const value = fromBlock(__get_state(block(key)));
    if (value == "null") return 0;
    return this.integer(value, "the state's `" + key + "` is no whole number");
  }

  // Sets a value of the state, which is JSON.
  setState(key: string, json: string): void {
    __set_state(block(key), block(json));
  }

  // Puts a message out: its type, such as "Object", and its data, which is JSON.
  send(port: string, type: string, json: string): void {
    __send_output(block('{"' + port + '":{"type":"' + type + '","data":' + json + "}}"));
  }

  // Writes a line to the actor's log.
  log(text: string): void {
    log_info(block(text));
  }

  // Makes the turn fail.
  fail(why: string): void {
    if (this.mistake == "") this.mistake = why;
  }

  // Ends the turn.
  end(): i32 {
    if (this.mistake == "") return answer('{"outputs":{}}');
    error_set(block(this.mistake));
    return 1;
  }

  private integer(text: string, why: string): i64 {
    const whole = new Whole();
    if (!whole.read(text)) this.fail(why);
    return whole.value;
  }
}

// The whole number that a JSON number is: `1.0` and `1e3` are, as JavaScript and Go write them.
class Whole {
  value: i64 = 0;

  // Whether it is one.
  read(text: string): bool {
    const negative = text.startsWith("-");
    const most: u64 = negative ? (<u64>1) << 63 : <u64>i64.MAX_VALUE;
    const begin = negative ? 1 : 0;
    let value: u64 = 0;
    let exponent: i64 = 0;
    let zeros: i64 = 0;
    let behindPoint = false;
    let i = begin;
    for (; i < text.length; i++) {
      const c = text.charCodeAt(i);
      if (c == 101 || c == 69) break;
      if (c == 46 && !behindPoint && i > begin) {
        behindPoint = true;
        continue;
      }
      if (c < 48 || c > 57) return false;
      if (behindPoint) exponent--;
      zeros++;
      if (c == 48) continue;
      // The zeros before it count now that something follows them.
      for (; zeros > 0; zeros--) {
        const digit: u64 = zeros == 1 ? <u64>(c - 48) : 0;
        if (value > (most - digit) / 10) return false;
        value = value * 10 + digit;
      }
    }
    if (i == begin) return false;
    exponent += zeros;
    if (i < text.length) {
      i++;
      const minus = i < text.length && text.charCodeAt(i) == 45;
      if (minus || (i < text.length && text.charCodeAt(i) == 43)) i++;
      if (i == text.length) return false;
      let written: i64 = 0;
      for (; i < text.length; i++) {
        const c = text.charCodeAt(i);
        if (c < 48 || c > 57) return false;
        if (written < 1000000000) written = written * 10 + (c - 48);
      }
      exponent += minus ? -written : written;
    }
    if (value > 0 && exponent < 0) return false;
    for (; value > 0 && exponent > 0; exponent--) {
      if (value > most / 10) return false;
      value *= 10;
    }
    this.value = negative ? -(<i64>value) : <i64>value;
    return true;
  }
}

// What the module says of itself: its name, and its ports, such as "add:Integer".
export function metadata(component: string, inports: string[], outports: string[]): i32 {
  return answer(
    '{"component":"' + component + '","inports":[' + ports(inports) + '],"outports":[' + ports(outports) + '],"config_schema":null}',
  );
}

function ports(list: string[]): string {
  const parts: string[] = [];
  for (let i = 0; i < list.length; i++) {
    const part = list[i].split(":");
    parts.push('{"name":"' + part[0] + '","port_type":"' + part[1] + '"}');
  }
  return parts.join(",");
}

function answer(text: string): i32 {
  output_set(block(text), String.UTF8.byteLength(text));
  return 0;
}

// A block of the host's memory with a copy of `text`.
function block(text: string): u64 {
  const bytes = Uint8Array.wrap(String.UTF8.encode(text));
  const to = alloc(bytes.length);
  for (let i = 0; i < bytes.length; i++) store_u8(to + i, bytes[i]);
  return to;
}

function fromBlock(from: u64): string {
  const bytes = new Uint8Array(<i32>length(from));
  for (let i = 0; i < bytes.length; i++) bytes[i] = <u8>load_u8(from + i);
  return String.UTF8.decode(bytes.buffer);
}

function input(): string {
  const bytes = new Uint8Array(<i32>input_length());
  for (let i = 0; i < bytes.length; i++) bytes[i] = <u8>input_load_u8(i);
  return String.UTF8.decode(bytes.buffer);
}

// The value of `key` in a JSON object; empty where it has none.
function member(object: string, key: string): string {
  let i = 1;
  while (i + 1 < object.length) {
    const name = i + 1;
    let end = name;
    while (end < object.length && object.charCodeAt(end) != 34) end += object.charCodeAt(end) == 92 ? 2 : 1;
    let value = end + 1;
    while (value < object.length && (object.charCodeAt(value) == 58 || object.charCodeAt(value) == 32)) value++;
    const behind = valueEnd(object, value);
    if (object.substring(name, end) == key) return object.substring(value, behind);
    i = behind + 1;
    while (i < object.length && object.charCodeAt(i) == 32) i++;
  }
  return "";
}

// Where the JSON value that begins at `i` ends.
function valueEnd(json: string, i: i32): i32 {
  let depth = 0;
  let within = false;
  for (; i < json.length; i++) {
    const c = json.charAt(i);
    if (within) {
      if (c == "\\") i++;
      else if (c == '"') within = false;
    } else if (c == '"') within = true;
    else if (c == "{" || c == "[") depth++;
    else if (depth == 0 && (c == "," || c == "}" || c == "]")) break;
    else if (c == "}" || c == "]") depth--;
  }
  return i;
}

let stopping: bool = false;

// What the compiler calls where a program cannot go on: the text and the place become the
// reason why the call fails.
export function stop(message: string | null, file: string | null, line: u32, column: u32): void {
  // To tell takes memory, of which there may be none.
  if (!stopping) {
    stopping = true;
    const text = message === null ? "no reason given" : message;
    const where = file === null ? "?" : file;
    error_set(block("stopped at " + where + ":" + line.toString() + ":" + column.toString() + ": " + text));
  }
  unreachable();
}
