// The plug-in ABI in one file, for actors in AssemblyScript.
//
// Blocks of the host's memory are handles: the host makes them, and bytes go in
// and out one by one. Text crosses as a block; the functions at the end do that.

@external("extism:host/env", "alloc") declare function alloc(length: u64): u64;
@external("extism:host/env", "length") declare function length(block: u64): u64;
@external("extism:host/env", "load_u8") declare function load_u8(at: u64): u32;
@external("extism:host/env", "store_u8") declare function store_u8(at: u64, byte: u32): void;
@external("extism:host/env", "input_length") declare function input_length(): u64;
@external("extism:host/env", "input_load_u8") declare function input_load_u8(at: u64): u32;
@external("extism:host/env", "output_set") declare function output_set(block: u64, length: u64): void;
@external("extism:host/env", "error_set") declare function error_set(block: u64): void;
@external("extism:host/env", "config_get") declare function config_get(key: u64): u64;
@external("extism:host/env", "log_info") declare function log_info(text: u64): void;
@external("extism:host/user", "__get_state") declare function __get_state(key: u64): u64;
@external("extism:host/user", "__set_state") declare function __set_state(key: u64, value: u64): void;

// A block with a copy of `text`.
function block(text: string): u64 {
  const bytes = Uint8Array.wrap(String.UTF8.encode(text));
  const to = alloc(bytes.length);
  for (let i = 0; i < bytes.length; i++) store_u8(to + i, bytes[i]);
  return to;
}

// A block's text; null for the handle 0.
function fromBlock(from: u64): string | null {
  if (from == 0) return null;
  const bytes = new Uint8Array(<i32>length(from));
  for (let i = 0; i < bytes.length; i++) bytes[i] = <u8>load_u8(from + i);
  return String.UTF8.decode(bytes.buffer);
}

export function input(): string {
  const bytes = new Uint8Array(<i32>input_length());
  for (let i = 0; i < bytes.length; i++) bytes[i] = <u8>input_load_u8(i);
  return String.UTF8.decode(bytes.buffer);
}

export function answer(text: string): i32 {
  output_set(block(text), String.UTF8.byteLength(text));
  return 0;
}

export function fail(text: string): i32 {
  error_set(block(text));
  return 1;
}

export function config(key: string): string | null {
  return fromBlock(config_get(block(key)));
}

export function log(text: string): void {
  log_info(block(text));
}

export function getState(key: string): string | null {
  return fromBlock(__get_state(block(key)));
}

export function setState(key: string, value: string): void {
  __set_state(block(key), block(value));
}

// What the compiler calls where a program cannot go on.
export function stop(_message: string | null, _file: string | null, _line: u32, _column: u32): void {
  unreachable();
}
