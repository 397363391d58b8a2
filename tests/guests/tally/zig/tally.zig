//! Tally in Zig: adds what comes to a count in its state.

const std = @import("std");
const abi = @import("abi.zig");

export fn get_metadata() i32 {
    return abi.answer(
        \\{"component":"Tally","description":"Adds what comes to a count.",
        \\"inports":[{"name":"in","description":"What to add.","port_type":"Integer","required":true}],
        \\"outports":[{"name":"out","description":"The count.","port_type":"Integer"}],
        \\"config_schema":null}
    );
}

export fn get_version() i32 {
    return abi.answer("\"1.0.0\"");
}

export fn process() i32 {
    var room: [4096]u8 = undefined;
    var small: [32]u8 = undefined;
    var value = number(after(after(abi.input(&room), "\"in\":"), "\"data\":"));
    if (value < 0) return abi.fail(print(&room, "in: {d} is negative", value));

    const step = abi.config("step", &small);
    if (step.len > 0) value *= number(step);
    const count = value + number(abi.getState("count", &small));

    abi.setState("count", print(&small, "{d}", count));
    abi.log(print(&room, "count is {d}", count));
    return abi.answer(print(&room, "{{\"outputs\":{{\"out\":{{\"type\":\"Integer\",\"data\":{d}}}}}}}", count));
}

fn print(room: []u8, comptime text: []const u8, n: i64) []const u8 {
    return std.fmt.bufPrint(room, text, .{n}) catch @panic("a number has twenty digits at most");
}

/// The number that `text` begins with; 0 where it begins with none.
fn number(text: []const u8) i64 {
    const sign: usize = @intFromBool(text.len > 0 and text[0] == '-');
    var end = sign;
    while (end < text.len and text[end] >= '0' and text[end] <= '9') end += 1;
    return std.fmt.parseInt(i64, text[0..end], 10) catch 0;
}

/// What follows `part` in `text`; nothing where it is not there.
fn after(text: []const u8, part: []const u8) []const u8 {
    const at = std.mem.find(u8, text, part) orelse return "";
    return text[at + part.len ..];
}
