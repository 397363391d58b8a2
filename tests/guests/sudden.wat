;; Takes 200 turns at once, and computes without end in the next.
(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (memory (export "memory") 1)
  (data (i32.const 0) "{\"component\":\"Sudden\",\"inports\":[{\"name\":\"in\",\"port_type\":\"Any\"}],\"outports\":[]}")
  (data (i32.const 200) "{\"outputs\":{}}")
  (global $turns (mut i32) (i32.const 0))
  (func $say (param $from i32) (param $count i32) (result i32)
    (local $block i64) (local $at i32)
    (local.set $block (call $alloc (i64.extend_i32_u (local.get $count))))
    (loop $next
      (call $store
        (i64.add (local.get $block) (i64.extend_i32_u (local.get $at)))
        (i32.load8_u (i32.add (local.get $from) (local.get $at))))
      (br_if $next
        (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (local.get $count))))
    (call $output (local.get $block) (i64.extend_i32_u (local.get $count)))
    (i32.const 0))
  (func (export "get_metadata") (result i32) (call $say (i32.const 0) (i32.const 80)))
  (func (export "process") (result i32)
    (global.set $turns (i32.add (global.get $turns) (i32.const 1)))
    (if (i32.gt_u (global.get $turns) (i32.const 200)) (then (loop $ever (br $ever))))
    (call $say (i32.const 200) (i32.const 14)))
)
