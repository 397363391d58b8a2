// Actors for reflowd in C, in one file that depends on nothing.
//
// A turn reads one context in JSON and asks the host for the rest. What goes wrong is
// remembered, and `done()` makes it the turn's error; nothing of a failed turn happens.

#ifndef REFLOWD_H
#define REFLOWD_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define HOST(module, name) __attribute__((import_module(module), import_name(name))) extern
#define EXPORT(name) __attribute__((export_name(name)))

HOST("extism:host/env", "alloc") u64 host_alloc(u64 length);
HOST("extism:host/env", "length") u64 host_length(u64 block);
HOST("extism:host/env", "load_u8") u32 host_load(u64 at);
HOST("extism:host/env", "store_u8") void host_store(u64 at, u32 byte);
HOST("extism:host/env", "input_length") u64 host_input_length(void);
HOST("extism:host/env", "input_load_u8") u32 host_input_load(u64 at);
HOST("extism:host/env", "output_set") void host_output_set(u64 block, u64 length);
HOST("extism:host/env", "error_set") void host_error_set(u64 block);
HOST("extism:host/env", "log_info") void host_log_info(u64 text);
HOST("extism:host/user", "__send_output") void host_send_output(u64 outputs);
HOST("extism:host/user", "__get_state") u64 host_get_state(u64 key);
HOST("extism:host/user", "__set_state") void host_set_state(u64 key, u64 value);

// Text that lies somewhere and does not end with a zero.
typedef struct { const u8 *at; u32 length; } text;

#define TEXT(literal) ((text){(const u8 *)(literal), sizeof(literal) - 1})

static text text_of(const char *word) {
    u32 length = 0;
    while (word[length]) length++;
    return (text){(const u8 *)word, length};
}

static int same(text a, text b) {
    if (a.length != b.length) return 0;
    for (u32 i = 0; i < a.length; i++) if (a.at[i] != b.at[i]) return 0;
    return 1;
}

// Memory for one turn: all that follows the module's own, given back when the turn ends.
extern u8 __heap_base;
static u8 *next_free = &__heap_base;

static u8 *take_room(u64 length) {
    u8 *room = next_free;
    u64 end = (u64)(u32)room + length;
    u64 there = (u64)__builtin_wasm_memory_size(0) << 16;
    if (end > there && __builtin_wasm_memory_grow(0, (end - there + 65535) >> 16) == (unsigned long)-1)
        __builtin_trap();
    next_free = (u8 *)(u32)((end + 7) & ~7ull);
    return room;
}

// A block of the host's memory with a copy of `t`.
static u64 block(text t) {
    u64 to = host_alloc(t.length);
    for (u32 i = 0; i < t.length; i++) host_store(to + i, t.at[i]);
    return to;
}

static text from_block(u64 from) {
    if (from == 0) return (text){0, 0};
    u32 length = (u32)host_length(from);
    u8 *room = take_room(length);
    for (u32 i = 0; i < length; i++) room[i] = (u8)host_load(from + i);
    return (text){room, length};
}

// Texts put one behind the other.
static text join(const text *parts, u32 count) {
    u32 length = 0;
    for (u32 i = 0; i < count; i++) length += parts[i].length;
    u8 *room = take_room(length), *to = room;
    for (u32 i = 0; i < count; i++)
        for (u32 j = 0; j < parts[i].length; j++) *to++ = parts[i].at[j];
    return (text){room, length};
}

#define JOIN(...) join((text[]){__VA_ARGS__}, sizeof((text[]){__VA_ARGS__}) / sizeof(text))

static text text_of_integer(i64 n) {
    u8 *room = take_room(20);
    u32 at = 20;
    u64 rest = n < 0 ? -(u64)n : (u64)n;
    do room[--at] = (u8)('0' + rest % 10);
    while (rest /= 10);
    if (n < 0) room[--at] = '-';
    return (text){room + at, 20 - at};
}

// The first mistake of the turn.
static text mistake;

static void fail(text why) {
    if (mistake.length == 0) mistake = why;
}

// Where the JSON value that begins at `i` ends.
static u32 value_end(text json, u32 i) {
    u32 depth = 0;
    for (int within = 0; i < json.length; i++) {
        u8 c = json.at[i];
        if (within) {
            if (c == '\\') i++;
            else if (c == '"') within = 0;
        } else if (c == '"') within = 1;
        else if (c == '{' || c == '[') depth++;
        else if (depth == 0 && (c == ',' || c == '}' || c == ']')) break;
        else if (c == '}' || c == ']') depth--;
    }
    return i;
}

// The value of `key` in a JSON object; nothing where it has none.
static text member(text object, text key) {
    for (u32 i = 1; i + 1 < object.length;) {
        u32 name = i + 1, end = name;
        while (end < object.length && object.at[end] != '"') end += object.at[end] == '\\' ? 2 : 1;
        u32 value = end + 1;
        while (value < object.length && (object.at[value] == ':' || object.at[value] == ' ')) value++;
        u32 behind = value_end(object, value);
        if (same((text){object.at + name, end - name}, key)) return (text){object.at + value, behind - value};
        for (i = behind + 1; i < object.length && object.at[i] == ' ';) i++;
    }
    return (text){0, 0};
}

// The whole number that a JSON number is: `1.0` and `1e3` are, as JavaScript and Go write them.
static int integer_of(text t, i64 *n) {
    int negative = t.length > 0 && t.at[0] == '-', behind_point = 0;
    u64 value = 0, most = negative ? 1ull << 63 : (1ull << 63) - 1;
    i64 exponent = 0, zeros = 0;
    u32 i = (u32)negative, begin = i;
    for (; i < t.length && t.at[i] != 'e' && t.at[i] != 'E'; i++) {
        u8 c = t.at[i];
        if (c == '.' && !behind_point && i > begin) { behind_point = 1; continue; }
        if (c < '0' || c > '9') return 0;
        exponent -= behind_point;
        zeros++;
        if (c == '0') continue;
        // The zeros before it count now that something follows them.
        for (; zeros > 0; zeros--) {
            u64 digit = zeros == 1 ? (u64)(c - '0') : 0;
            if (value > (most - digit) / 10) return 0;
            value = value * 10 + digit;
        }
    }
    if (i == begin) return 0;
    exponent += zeros;
    if (i < t.length) {
        int minus = ++i < t.length && t.at[i] == '-';
        i64 written = 0;
        i += minus || (i < t.length && t.at[i] == '+');
        if (i == t.length) return 0;
        for (; i < t.length; i++) {
            if (t.at[i] < '0' || t.at[i] > '9') return 0;
            if (written < 1000000000) written = written * 10 + (t.at[i] - '0');
        }
        exponent += minus ? -written : written;
    }
    if (value > 0 && exponent < 0) return 0;
    for (; value > 0 && exponent > 0; exponent--) {
        if (value > most / 10) return 0;
        value *= 10;
    }
    *n = negative ? (i64)-value : (i64)value;
    return 1;
}

// The context of the turn, once it has been read.
static text read;

static text context(void) {
    if (read.length == 0) {
        u32 length = (u32)host_input_length();
        u8 *room = take_room(length);
        for (u32 i = 0; i < length; i++) room[i] = (u8)host_input_load(i);
        read = (text){room, length};
    }
    return read;
}

// The data that came by `port`, as JSON; nothing where none came.
static text take(const char *port) {
    return member(member(member(context(), TEXT("payload")), text_of(port)), TEXT("data"));
}

// The whole number that came by `port`.
static i64 take_integer(const char *port) {
    i64 n = 0;
    if (!integer_of(take(port), &n)) fail(JOIN(TEXT("no whole number came by `"), text_of(port), TEXT("`")));
    return n;
}

// A value of the actor's configuration, as JSON.
static text config(const char *key) {
    return member(member(member(context(), TEXT("config")), TEXT("config")), text_of(key));
}

// A whole number of the state; 0 where there is none yet.
static i64 state_integer(const char *key) {
    i64 n = 0;
    text value = from_block(host_get_state(block(text_of(key))));
    if (!same(value, TEXT("null")) && !integer_of(value, &n))
        fail(JOIN(TEXT("the state's `"), text_of(key), TEXT("` is no whole number")));
    return n;
}

// Sets a value of the state, which is JSON.
static void set_state(const char *key, text json) { host_set_state(block(text_of(key)), block(json)); }

static void set_state_integer(const char *key, i64 n) { set_state(key, text_of_integer(n)); }

// Puts a message out: its type, such as "Object", and its data, which is JSON.
static void send(const char *port, const char *type, text json) {
    host_send_output(block(JOIN(TEXT("{\""), text_of(port), TEXT("\":{\"type\":\""), text_of(type),
                                TEXT("\",\"data\":"), json, TEXT("}}"))));
}

static void send_integer(const char *port, i64 n) { send(port, "Integer", text_of_integer(n)); }

static void log_text(text line) { host_log_info(block(line)); }

static void log_integer(const char *before, i64 n) { log_text(JOIN(text_of(before), text_of_integer(n))); }

// Ends the turn.
static int done(void) {
    text why = mistake;
    mistake = read = (text){0, 0};
    if (why.length > 0) host_error_set(block(why));
    else host_output_set(block(TEXT("{\"outputs\":{}}")), 14);
    next_free = &__heap_base;
    return why.length > 0;
}

#define PORT(name, type) "{\"name\":\"" name "\",\"port_type\":\"" type "\"}"

// What the module says of itself: its name, and lists of ports with commas between.
#define METADATA(component, inports, outports)                                                     \
    EXPORT("get_metadata") int get_metadata(void) {                                                \
        text said = TEXT("{\"component\":\"" component "\",\"inports\":[" inports                  \
                         "],\"outports\":[" outports "],\"config_schema\":null}");                 \
        host_output_set(block(said), said.length);                                                 \
        return 0;                                                                                  \
    }

// One turn, which ends with `return done();`.
#define PROCESS EXPORT("process") int process(void)

#endif
