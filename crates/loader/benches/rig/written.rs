//! Guests that are written by hand, because they do next to nothing.

use bytes::Bytes;

/// A guest with the inport `value`, whose `process` has that body. It can say
/// `(call $answer (i32.const 256) (i32.const 14))`, which puts out nothing, and
/// `(call $answer (i32.const 512) (i32.const 38))`, which puts out a `value`.
pub(crate) fn written(process: &str) -> Bytes {
    const METADATA: &str = r#"{"component":"Written","outports":[],"inports":[{"name":"value","description":"","port_type":"Any","required":true}]}"#;
    let escaped: String = METADATA.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    let text = format!(
        r#"(module
          (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
          (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
          (import "extism:host/env" "output_set" (func $output (param i64 i64)))
          (import "extism:host/env" "log_info" (func $log (param i64)))
          (import "extism:host/user" "__get_state" (func $get_state (param i64) (result i64)))
          (memory 1)
          (data (i32.const 0) "{escaped}")
          (data (i32.const 256) "{{\22outputs\22:{{}}}}")
          (data (i32.const 512) "{{\22outputs\22:{{\22value\22:{{\22type\22:\22Flow\22}}}}}}")
          (func $answer (param $at i32) (param $length i32)
            (local $block i64) (local $i i32)
            (local.set $block
              (call $alloc (i64.extend_i32_u (i32.add (local.get $length) (i32.const 8)))))
            (loop $next
              (call $store (i64.add (local.get $block) (i64.extend_i32_u (local.get $i)))
                (i64.load (i32.add (local.get $at) (local.get $i))))
              (local.set $i (i32.add (local.get $i) (i32.const 8)))
              (br_if $next (i32.lt_u (local.get $i) (local.get $length))))
            (call $output (local.get $block) (i64.extend_i32_u (local.get $length))))
          (func (export "get_metadata") (result i32)
            (call $answer (i32.const 0) (i32.const {length})) (i32.const 0))
          (func (export "process") (result i32) {process}))"#,
        length = METADATA.len(),
    );
    wat::parse_str(&text).expect("it is WebAssembly").into()
}
