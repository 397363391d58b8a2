//! Actors for reflowd in Zig, in one file that depends on nothing.
//!
//! An actor is a function that takes a turn. An error that it returns is the turn's, and
//! nothing of a failed turn happens.

const std = @import("std");

const env = struct {
    extern "extism:host/env" fn alloc(length: u64) u64;
    extern "extism:host/env" fn length(block: u64) u64;
    extern "extism:host/env" fn load_u8(at: u64) u8;
    extern "extism:host/env" fn store_u8(at: u64, byte: u8) void;
    extern "extism:host/env" fn input_length() u64;
    extern "extism:host/env" fn input_load_u8(at: u64) u8;
    extern "extism:host/env" fn output_set(block: u64, length: u64) void;
    extern "extism:host/env" fn error_set(block: u64) void;
    extern "extism:host/env" fn log_info(text: u64) void;
};

const user = struct {
    extern "extism:host/user" fn __send_output(outputs: u64) void;
    extern "extism:host/user" fn __get_state(key: u64) u64;
    extern "extism:host/user" fn __set_state(key: u64, value: u64) void;
};

pub const Error = error{ NothingCame, NotAWholeNumber, TooLong };

/// A port: its name and the type of its messages, such as "Integer".
pub const Port = struct { []const u8, []const u8 };

pub const Actor = struct {
    component: []const u8,
    inports: []const Port,
    outports: []const Port = &.{},
    process: *const fn (turn: *Turn) Error!void,
};

/// Makes `spec` the actor of this module: exports what reflowd calls.
pub fn actor(comptime spec: Actor) void {
    const exports = struct {
        fn getMetadata() callconv(.c) i32 {
            const said = comptime "{\"component\":\"" ++ spec.component ++ "\",\"inports\":[" ++
                ports(spec.inports) ++ "],\"outports\":[" ++ ports(spec.outports) ++
                "],\"config_schema\":null}";
            return answer(said);
        }

        fn process() callconv(.c) i32 {
            var turn = Turn.begin() catch |why| return fail(@errorName(why));
            spec.process(&turn) catch |why| return fail(@errorName(why));
            return answer("{\"outputs\":{}}");
        }
    };
    @export(&exports.getMetadata, .{ .name = "get_metadata" });
    @export(&exports.process, .{ .name = "process" });
}

fn ports(comptime list: []const Port) []const u8 {
    comptime var text: []const u8 = "";
    inline for (list, 0..) |port, i| {
        const comma = if (i == 0) "" else ",";
        text = text ++ comma ++ "{\"name\":\"" ++ port[0] ++ "\",\"port_type\":\"" ++ port[1] ++ "\"}";
    }
    return text;
}

/// The messages that a turn takes, and what it can do with the world.
pub const Turn = struct {
    context: []const u8,

    var room: [1 << 20]u8 = undefined;

    fn begin() Error!Turn {
        const length = env.input_length();
        if (length > room.len) return error.TooLong;
        const context = room[0..@intCast(length)];
        for (context, 0..) |*byte, i| byte.* = env.input_load_u8(i);
        return .{ .context = context };
    }

    /// The data that came by `port`, as JSON.
    pub fn data(turn: *Turn, port: []const u8) Error![]const u8 {
        const payload = member(turn.context, "payload") orelse return error.NothingCame;
        const message = member(payload, port) orelse return error.NothingCame;
        return member(message, "data") orelse error.NothingCame;
    }

    /// The whole number that came by `port`.
    pub fn take(turn: *Turn, port: []const u8) Error!i64 {
        return wholeNumber(try turn.data(port)) orelse error.NotAWholeNumber;
    }

    /// A value of the actor's configuration, as JSON.
    pub fn config(turn: *Turn, key: []const u8) ?[]const u8 {
        const around = member(turn.context, "config") orelse return null;
        return member(member(around, "config") orelse return null, key);
    }

    /// A whole number of the state; 0 where there is none yet.
    pub fn state(_: *Turn, key: []const u8) Error!i64 {
        var small: [32]u8 = undefined;
        const value = try fromBlock(user.__get_state(block(key)), &small);
        if (std.mem.eql(u8, value, "null")) return 0;
        return wholeNumber(value) orelse error.NotAWholeNumber;
    }

    /// Sets a value of the state, a whole number.
    pub fn setState(_: *Turn, key: []const u8, value: i64) void {
        var small: [32]u8 = undefined;
        user.__set_state(block(key), block(print(&small, "{d}", .{value})));
    }

    /// Puts a message out: its type, such as "Object", and its data, which is JSON.
    pub fn sendJson(_: *Turn, port: []const u8, kind: []const u8, json: []const u8) Error!void {
        var out: [1 << 16]u8 = undefined;
        const text = "{{\"{s}\":{{\"type\":\"{s}\",\"data\":{s}}}}}";
        const outputs = std.fmt.bufPrint(&out, text, .{ port, kind, json }) catch return error.TooLong;
        user.__send_output(block(outputs));
    }

    /// Puts a whole number out.
    pub fn send(turn: *Turn, port: []const u8, value: i64) Error!void {
        var small: [32]u8 = undefined;
        try turn.sendJson(port, "Integer", print(&small, "{d}", .{value}));
    }

    /// Writes a line to the actor's log; what is over 1 KiB is left out.
    pub fn log(_: *Turn, comptime text: []const u8, args: anytype) void {
        var line: [1024]u8 = undefined;
        env.log_info(block(std.fmt.bufPrint(&line, text, args) catch "a line that is too long"));
    }
};

fn print(small: []u8, comptime text: []const u8, args: anytype) []const u8 {
    return std.fmt.bufPrint(small, text, args) catch unreachable;
}

fn answer(text: []const u8) i32 {
    env.output_set(block(text), text.len);
    return 0;
}

fn fail(text: []const u8) i32 {
    env.error_set(block(text));
    return 1;
}

/// A block of the host's memory with a copy of `text`.
fn block(text: []const u8) u64 {
    const to = env.alloc(text.len);
    for (text, 0..) |byte, i| env.store_u8(to + i, byte);
    return to;
}

fn fromBlock(from: u64, to: []u8) Error![]const u8 {
    const length = env.length(from);
    if (length > to.len) return error.TooLong;
    const text = to[0..@intCast(length)];
    for (text, 0..) |*byte, i| byte.* = env.load_u8(from + i);
    return text;
}

/// The whole number that a JSON number is: `1.0` and `1e3` are, as JavaScript and Go write them.
fn wholeNumber(text: []const u8) ?i64 {
    const negative = text.len > 0 and text[0] == '-';
    const begin: usize = if (negative) 1 else 0;
    var value: i64 = 0;
    var exponent: i64 = 0;
    var zeros: i64 = 0;
    var behind_point = false;
    var i = begin;
    while (i < text.len and text[i] != 'e' and text[i] != 'E') : (i += 1) {
        const c = text[i];
        if (c == '.' and !behind_point and i > begin) {
            behind_point = true;
            continue;
        }
        if (c < '0' or c > '9') return null;
        if (behind_point) exponent -= 1;
        zeros += 1;
        if (c == '0') continue;
        // The zeros before it count now that something follows them.
        while (zeros > 0) : (zeros -= 1) {
            const digit: i64 = if (zeros == 1) c - '0' else 0;
            value = std.math.mul(i64, value, 10) catch return null;
            // Counted down, since there is one more number below zero than above.
            value = std.math.sub(i64, value, digit) catch return null;
        }
    }
    if (i == begin) return null;
    exponent += zeros;
    if (i < text.len) {
        i += 1;
        const minus = i < text.len and text[i] == '-';
        if (minus or (i < text.len and text[i] == '+')) i += 1;
        if (i == text.len) return null;
        var written: i64 = 0;
        while (i < text.len) : (i += 1) {
            if (text[i] < '0' or text[i] > '9') return null;
            if (written < 1_000_000_000) written = written * 10 + (text[i] - '0');
        }
        exponent += if (minus) -written else written;
    }
    if (value != 0 and exponent < 0) return null;
    while (value != 0 and exponent > 0) : (exponent -= 1) value = std.math.mul(i64, value, 10) catch return null;
    return if (negative) value else std.math.negate(value) catch null;
}

/// The value of `key` in a JSON object.
fn member(object: []const u8, key: []const u8) ?[]const u8 {
    var i: usize = 1;
    while (i + 1 < object.len) {
        const name = i + 1;
        var end = name;
        while (end < object.len and object[end] != '"') end += if (object[end] == '\\') 2 else 1;
        var value = end + 1;
        while (value < object.len and (object[value] == ':' or object[value] == ' ')) value += 1;
        const behind = valueEnd(object, value);
        if (std.mem.eql(u8, object[name..end], key)) return object[value..behind];
        i = behind + 1;
        while (i < object.len and object[i] == ' ') i += 1;
    }
    return null;
}

/// Where the JSON value that begins at `from` ends.
fn valueEnd(json: []const u8, from: usize) usize {
    var depth: usize = 0;
    var within = false;
    var i = from;
    while (i < json.len) : (i += 1) {
        const c = json[i];
        if (within) {
            if (c == '\\') i += 1 else if (c == '"') within = false;
        } else switch (c) {
            '"' => within = true,
            '{', '[' => depth += 1,
            '}', ']', ',' => {
                if (depth == 0) return i;
                if (c != ',') depth -= 1;
            },
            else => {},
        }
    }
    return i;
}
