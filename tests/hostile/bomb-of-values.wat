;; refused values given to and by the blocks of one function | Blocks that hand a value on, ten thousand in each of a hundred functions.
;; extism: skipped, it may take long
(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (memory (export "memory") 2)
  (data (i32.const 8) "{\"component\":\"Hostile\",\"inports\":[{\"name\":\"in\",\"port_type\":\"Any\"}],\"outports\":[{\"name\":\"out\",\"port_type\":\"Any\"}]}")
  (data (i32.const 600) "{\"outputs\":{}}")
  ;; A block with a copy of the bytes.
  (func $block (param $at i32) (param $len i32) (result i64) (local $block i64) (local $i i32)
    (local.set $block (call $alloc (i64.extend_i32_u (local.get $len))))
    (loop $next
      (call $store (i64.add (local.get $block) (i64.extend_i32_u (local.get $i)))
        (i32.load8_u (i32.add (local.get $at) (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $len))))
    (local.get $block))
  (func $answer (param $at i32) (param $len i32) (result i32)
    (call $output (call $block (local.get $at) (local.get $len)) (i64.extend_i32_u (local.get $len)))
    (i32.const 0))
  (func (export "get_metadata") (result i32) (call $answer (i32.const 8) (i32.const 113)))
  ;; repeat 100
  (func (result i32) i32.const 0
  ;; repeat 10000
  if (result i32) i32.const 1 else i32.const 2 end
  ;; end
  )
  ;; end
  (func (export "process") (result i32) (call $answer (i32.const 600) (i32.const 14)))
)
