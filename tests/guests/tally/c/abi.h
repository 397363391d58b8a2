// The plug-in ABI in one file, for actors in C without a C library.
//
// Blocks of the host's memory are handles: the host makes them, and bytes go in
// and out one by one. Text crosses as a block; the functions at the end do that.

#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define HOST(namespace, name) __attribute__((import_module("extism:host/" namespace), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

HOST("env", "alloc") u64 host_alloc(u64 length);
HOST("env", "length") u64 host_length(u64 block);
HOST("env", "load_u8") u32 host_load(u64 at);
HOST("env", "store_u8") void host_store(u64 at, u32 byte);
HOST("env", "input_length") u64 host_input_length(void);
HOST("env", "input_load_u8") u32 host_input_load(u64 at);
HOST("env", "output_set") void host_output_set(u64 block, u64 length);
HOST("env", "error_set") void host_error_set(u64 block);
HOST("env", "config_get") u64 host_config_get(u64 key);
HOST("env", "log_info") void host_log_info(u64 text);
HOST("user", "__get_state") u64 host_get_state(u64 key);
HOST("user", "__set_state") void host_set_state(u64 key, u64 value);

// Bytes of this module's own memory.
typedef struct {
    const u8 *at;
    u32 length;
} text;

#define TEXT(literal) ((text){(const u8 *)(literal), sizeof(literal) - 1})

// A block with a copy of `t`.
static u64 block(text t) {
    u64 to = host_alloc(t.length);
    for (u32 i = 0; i < t.length; i++) host_store(to + i, t.at[i]);
    return to;
}

// As much of a block as there is room for; nothing for the handle 0.
static text from_block(u64 from, u8 *room, u32 size) {
    u64 length = from ? host_length(from) : 0;
    if (length > size) length = size;
    for (u32 i = 0; i < length; i++) room[i] = (u8)host_load(from + i);
    return (text){room, (u32)length};
}

// As much of the call's input as there is room for.
static text input(u8 *room, u32 size) {
    u64 length = host_input_length();
    if (length > size) length = size;
    for (u32 i = 0; i < length; i++) room[i] = (u8)host_input_load(i);
    return (text){room, (u32)length};
}

static int answer(text t) {
    host_output_set(block(t), t.length);
    return 0;
}

static int fail(text t) {
    host_error_set(block(t));
    return 1;
}
