// Tally in Go: adds what comes to a count in its state.
package main

import (
	"strconv"
	"strings"
)

//go:wasmexport get_metadata
func getMetadata() int32 {
	return answer(`{"component":"Tally","description":"Adds what comes to a count.",
"inports":[{"name":"in","description":"What to add.","port_type":"Integer","required":true}],
"outports":[{"name":"out","description":"The count.","port_type":"Integer"}],
"config_schema":null}`)
}

//go:wasmexport get_version
func getVersion() int32 { return answer(`"1.0.0"`) }

//go:wasmexport process
func process() int32 {
	_, rest, _ := strings.Cut(input(), `"in":`)
	_, data, _ := strings.Cut(rest, `"data":`)
	value := number(data)
	if value < 0 {
		return fail("in: " + strconv.FormatInt(value, 10) + " is negative")
	}

	if step := fromBlock(hostConfigGet(block("step"))); step != "" {
		value *= number(step)
	}
	count := strconv.FormatInt(value+number(fromBlock(hostGetState(block("count")))), 10)

	hostSetState(block("count"), block(count))
	hostLogInfo(block("count is " + count))
	return answer(`{"outputs":{"out":{"type":"Integer","data":` + count + `}}}`)
}

// The number that text begins with; 0 where it begins with none.
func number(text string) int64 {
	end := 0
	for end < len(text) && (text[end] >= '0' && text[end] <= '9' || end == 0 && text[end] == '-') {
		end++
	}
	n, _ := strconv.ParseInt(text[:end], 10, 64)
	return n
}

// A reactor has no program of its own.
func main() {}
