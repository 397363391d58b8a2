// Adds what comes to a sum: an actor that keeps state, logs and puts out.
#include "reflowd.h"

METADATA("Sum", PORT("add", "Integer"), PORT("sum", "Integer"))

PROCESS {
    i64 total = state_integer("total") + take_integer("add");
    set_state_integer("total", total);
    log_integer("the sum is ", total);
    send_integer("sum", total);
    return done();
}
