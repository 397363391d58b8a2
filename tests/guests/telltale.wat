;; Says all that it is told (its whole context, with its environment), in the way that its
;; entry point names: a log line, an error, an answer that is none, a trap on standard error.
(module
  (import "extism:host/env" "input_length" (func $length (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input (param i64) (result i32)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "error_set" (func $error (param i64)))
  (import "extism:host/env" "log_warn" (func $warn (param i64)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "{\"component\":\"Telltale\",\"inports\":[{\"name\":\"in\",\"port_type\":\"Any\"}],\"outports\":[]}")
  (data (i32.const 200) "{\"outputs\":{}}")

  ;; A block with bytes of the memory.
  (func $block (param $from i32) (param $count i32) (result i64)
    (local $block i64) (local $at i32)
    (local.set $block (call $alloc (i64.extend_i32_u (local.get $count))))
    (loop $next
      (call $store
        (i64.add (local.get $block) (i64.extend_i32_u (local.get $at)))
        (i32.load8_u (i32.add (local.get $from) (local.get $at))))
      (br_if $next
        (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (local.get $count))))
    (local.get $block))

  ;; The input, in the memory from 1000 on; gives its length.
  (func $read (result i32)
    (local $at i32)
    (loop $next
      (i32.store8 (i32.add (i32.const 1000) (local.get $at))
        (call $input (i64.extend_i32_u (local.get $at))))
      (br_if $next
        (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1)))
          (i32.wrap_i64 (call $length)))))
    (local.get $at))

  (func $done (result i32)
    (call $output (call $block (i32.const 200) (i32.const 14)) (i64.const 14))
    (i32.const 0))

  (func (export "get_metadata") (result i32)
    (local $length i64)
    (local.set $length (i64.const 82))
    (call $output (call $block (i32.const 0) (i32.wrap_i64 (local.get $length))) (local.get $length))
    (i32.const 0))

  (func (export "log") (result i32)
    (call $warn (call $block (i32.const 1000) (call $read)))
    (call $done))

  (func (export "error") (result i32)
    (call $error (call $block (i32.const 1000) (call $read)))
    (i32.const 1))

  (func (export "answer") (result i32)
    (local $length i32)
    (local.set $length (call $read))
    (call $output (call $block (i32.const 1000) (local.get $length))
      (i64.extend_i32_u (local.get $length)))
    (i32.const 0))

  (func (export "print") (result i32)
    (i32.store (i32.const 300) (i32.const 1000))
    (i32.store (i32.const 304) (call $read))
    (drop (call $write (i32.const 2) (i32.const 300) (i32.const 1) (i32.const 308)))
    (call $done))
)
