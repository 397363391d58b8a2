package main

// The plug-in ABI in one file, for actors in Go.
//
// Blocks of the host's memory are handles: the host makes them, and bytes go in
// and out one by one. Text crosses as a block; the functions at the end do that.

//go:wasmimport extism:host/env alloc
func hostAlloc(length uint64) uint64

//go:wasmimport extism:host/env length
func hostLength(block uint64) uint64

//go:wasmimport extism:host/env load_u8
func hostLoad(at uint64) uint32

//go:wasmimport extism:host/env store_u8
func hostStore(at uint64, b uint32)

//go:wasmimport extism:host/env input_length
func hostInputLength() uint64

//go:wasmimport extism:host/env input_load_u8
func hostInputLoad(at uint64) uint32

//go:wasmimport extism:host/env output_set
func hostOutputSet(block, length uint64)

//go:wasmimport extism:host/env error_set
func hostErrorSet(block uint64)

//go:wasmimport extism:host/env config_get
func hostConfigGet(key uint64) uint64

//go:wasmimport extism:host/env log_info
func hostLogInfo(text uint64)

//go:wasmimport extism:host/user __get_state
func hostGetState(key uint64) uint64

//go:wasmimport extism:host/user __set_state
func hostSetState(key, value uint64)

// A block with a copy of text.
func block(text string) uint64 {
	to := hostAlloc(uint64(len(text)))
	for i := range len(text) {
		hostStore(to+uint64(i), uint32(text[i]))
	}
	return to
}

// A block's text; nothing for the handle 0.
func fromBlock(from uint64) string {
	if from == 0 {
		return ""
	}
	bytes := make([]byte, hostLength(from))
	for i := range bytes {
		bytes[i] = byte(hostLoad(from + uint64(i)))
	}
	return string(bytes)
}

func input() string {
	bytes := make([]byte, hostInputLength())
	for i := range bytes {
		bytes[i] = byte(hostInputLoad(uint64(i)))
	}
	return string(bytes)
}

func answer(text string) int32 {
	hostOutputSet(block(text), uint64(len(text)))
	return 0
}

func fail(text string) int32 {
	hostErrorSet(block(text))
	return 1
}
