//! The plug-in ABI in one file, for actors in Zig.
//!
//! Blocks of the host's memory are handles: the host makes them, and bytes go in
//! and out one by one. Text crosses as a block; the functions at the end do that.

const env = struct {
    extern "extism:host/env" fn alloc(length: u64) u64;
    extern "extism:host/env" fn length(block: u64) u64;
    extern "extism:host/env" fn load_u8(at: u64) u8;
    extern "extism:host/env" fn store_u8(at: u64, byte: u8) void;
    extern "extism:host/env" fn input_length() u64;
    extern "extism:host/env" fn input_load_u8(at: u64) u8;
    extern "extism:host/env" fn output_set(block: u64, length: u64) void;
    extern "extism:host/env" fn error_set(block: u64) void;
    extern "extism:host/env" fn config_get(key: u64) u64;
    extern "extism:host/env" fn log_info(text: u64) void;
};

const user = struct {
    extern "extism:host/user" fn __get_state(key: u64) u64;
    extern "extism:host/user" fn __set_state(key: u64, value: u64) void;
};

/// A block with a copy of `text`.
fn block(text: []const u8) u64 {
    const to = env.alloc(text.len);
    for (text, 0..) |byte, i| env.store_u8(to + i, byte);
    return to;
}

/// As much of a block as there is room for; nothing for the handle 0.
fn fromBlock(from: u64, room: []u8) []const u8 {
    if (from == 0) return room[0..0];
    const length: usize = @intCast(@min(env.length(from), room.len));
    for (room[0..length], 0..) |*byte, i| byte.* = env.load_u8(from + i);
    return room[0..length];
}

/// As much of the call's input as there is room for.
pub fn input(room: []u8) []const u8 {
    const length: usize = @intCast(@min(env.input_length(), room.len));
    for (room[0..length], 0..) |*byte, i| byte.* = env.input_load_u8(i);
    return room[0..length];
}

pub fn answer(text: []const u8) i32 {
    env.output_set(block(text), text.len);
    return 0;
}

pub fn fail(text: []const u8) i32 {
    env.error_set(block(text));
    return 1;
}

pub fn config(key: []const u8, room: []u8) []const u8 {
    return fromBlock(env.config_get(block(key)), room);
}

pub fn log(text: []const u8) void {
    env.log_info(block(text));
}

pub fn getState(key: []const u8, room: []u8) []const u8 {
    return fromBlock(user.__get_state(block(key)), room);
}

pub fn setState(key: []const u8, value: []const u8) void {
    user.__set_state(block(key), block(value));
}
