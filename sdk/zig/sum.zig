//! Adds what comes to a sum: an actor that keeps state, logs and puts out.
const reflowd = @import("reflowd.zig");

comptime {
    reflowd.actor(.{ .component = "Sum", .inports = &.{.{ "add", "Integer" }}, .outports = &.{.{ "sum", "Integer" }}, .process = process });
}

fn process(turn: *reflowd.Turn) reflowd.Error!void {
    const total = try turn.state("total") + try turn.take("add");
    turn.setState("total", total);
    turn.log("the sum is {d}", .{total});
    try turn.send("sum", total);
}
