// Tally in C: adds what comes to a count in its state.

#include "abi.h"

EXPORT("get_metadata") int get_metadata(void) {
    return answer(TEXT(
        "{\"component\":\"Tally\",\"description\":\"Adds what comes to a count.\","
        "\"inports\":[{\"name\":\"in\",\"description\":\"What to add.\",\"port_type\":\"Integer\",\"required\":true}],"
        "\"outports\":[{\"name\":\"out\",\"description\":\"The count.\",\"port_type\":\"Integer\"}],"
        "\"config_schema\":null}"));
}

EXPORT("get_version") int get_version(void) { return answer(TEXT("\"1.0.0\"")); }

// The number that `t` begins with; 0 where it begins with none.
static i64 number(text t) {
    i64 n = 0;
    u32 i = 0;
    int negative = t.length > 0 && t.at[0] == '-';
    for (i = negative; i < t.length && t.at[i] >= '0' && t.at[i] <= '9'; i++) n = n * 10 + (t.at[i] - '0');
    return negative ? -n : n;
}

// What follows `part` in `t`; nothing where it is not there.
static text after(text t, text part) {
    for (u32 i = 0; i + part.length <= t.length; i++) {
        u32 same = 0;
        while (same < part.length && t.at[i + same] == part.at[same]) same++;
        if (same == part.length) return (text){t.at + i + same, t.length - i - same};
    }
    return (text){0, 0};
}

// Text put together in a room of its own.
static u8 written[160];
static u32 end;

static void put(text t) {
    for (u32 i = 0; i < t.length && end < sizeof written; i++) written[end++] = t.at[i];
}

static void put_number(i64 n) {
    u8 digits[20];
    u32 count = 0;
    u64 rest = n < 0 ? -(u64)n : (u64)n;
    do digits[count++] = (u8)('0' + rest % 10);
    while (rest /= 10);
    if (n < 0) put(TEXT("-"));
    while (count > 0) put((text){&digits[--count], 1});
}

static text sentence(text before, i64 n, text behind) {
    end = 0;
    put(before);
    put_number(n);
    put(behind);
    return (text){written, end};
}

EXPORT("process") int process(void) {
    static u8 room[4096], small[32];
    i64 value = number(after(after(input(room, sizeof room), TEXT("\"in\":")), TEXT("\"data\":")));
    if (value < 0) return fail(sentence(TEXT("in: "), value, TEXT(" is negative")));

    text step = from_block(host_config_get(block(TEXT("step"))), small, sizeof small);
    if (step.length > 0) value *= number(step);
    i64 count = value + number(from_block(host_get_state(block(TEXT("count"))), small, sizeof small));

    host_set_state(block(TEXT("count")), block(sentence(TEXT(""), count, TEXT(""))));
    host_log_info(block(sentence(TEXT("count is "), count, TEXT(""))));
    return answer(sentence(TEXT("{\"outputs\":{\"out\":{\"type\":\"Integer\",\"data\":"), count, TEXT("}}}")));
}
