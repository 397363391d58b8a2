package main

// Actors for reflowd in Go, in one file that needs nothing but the standard library.
//
// An actor is a function that takes a turn. An error that it returns is the turn's, and
// nothing of a failed turn happens.

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Ports has the type of messages, such as "Integer", for each port.
type Ports map[string]string

// Actor is what a module is to reflowd.
type Actor struct {
	Component         string
	Inports, Outports Ports
	Process           func(turn *Turn) error
}

// Turn has the messages that a turn takes, and what it can do with the world.
type Turn struct {
	Payload map[string]struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	} `json:"payload"`
	Around struct {
		Actor  string            `json:"node_id"`
		Config json.RawMessage   `json:"config"`
		Env    map[string]string `json:"resolved_env"`
	} `json:"config"`
}

var self Actor

// Export makes an actor the one of this module. Call it in init.
func Export(actor Actor) { self = actor }

// Take reads the data that came by port.
func (turn *Turn) Take(port string, into any) error {
	message, came := turn.Payload[port]
	if !came {
		return fmt.Errorf("nothing came by `%s`", port)
	}
	if err := read(message.Data, into); err != nil {
		return fmt.Errorf("`%s`: %w", port, err)
	}
	return nil
}

// read takes `1.0` and `1e3` for whole numbers too, as JavaScript and other hosts write them.
func read(data []byte, into any) error {
	err := json.Unmarshal(data, into)
	if err == nil {
		return nil
	}
	if whole, is := wholeNumber(string(data)); is && json.Unmarshal([]byte(whole), into) == nil {
		return nil
	}
	return err
}

// wholeNumber gives a JSON number without point and exponent, where it has the value of one.
func wholeNumber(text string) (string, bool) {
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	digits, exponent := text, 0
	if at := strings.IndexAny(text, "eE"); at >= 0 {
		written, err := strconv.Atoi(text[at+1:])
		if err != nil {
			return "", false
		}
		digits, exponent = text[:at], written
	}
	before, behind, _ := strings.Cut(digits, ".")
	exponent -= len(behind)
	digits = strings.TrimLeft(before+behind, "0")
	short := strings.TrimRight(digits, "0")
	exponent += len(digits) - len(short)
	if short == "" {
		return "0", before != ""
	}
	// None of 64 bits has more digits.
	if exponent < 0 || len(short)+exponent > 20 {
		return "", false
	}
	return sign + short + strings.Repeat("0", exponent), true
}

// Config reads the actor's configuration.
func (turn *Turn) Config(into any) error { return json.Unmarshal(turn.Around.Config, into) }

// State reads a value of the state; into stays as it is where there is none yet.
func (turn *Turn) State(key string, into any) error {
	return read([]byte(fromBlock(hostGetState(block(key)))), into)
}

// SetState sets a value of the state.
func (turn *Turn) SetState(key string, value any) error {
	text, err := json.Marshal(value)
	if err == nil {
		hostSetState(block(key), block(string(text)))
	}
	return err
}

// Send puts a value out by port.
func (turn *Turn) Send(port string, value any) error {
	kind, declared := self.Outports[port]
	if !declared || kind == "Any" {
		text, err := json.Marshal(map[string]any{port: value})
		if err == nil {
			hostSendOutput(block(string(text)))
		}
		return err
	}
	text, err := json.Marshal(map[string]any{port: map[string]any{"type": kind, "data": value}})
	if err == nil {
		hostSendOutput(block(string(text)))
	}
	return err
}

// Log writes a line to the actor's log.
func (turn *Turn) Log(format string, args ...any) { hostLogInfo(block(fmt.Sprintf(format, args...))) }

//go:wasmexport get_metadata
func getMetadata() int32 {
	ports := func(ports Ports) []map[string]string {
		list := []map[string]string{}
		for name, kind := range ports {
			list = append(list, map[string]string{"name": name, "port_type": kind})
		}
		return list
	}
	text, err := json.Marshal(map[string]any{
		"component": self.Component, "config_schema": nil,
		"inports": ports(self.Inports), "outports": ports(self.Outports),
	})
	return end(string(text), err)
}

//go:wasmexport process
func process() int32 {
	var turn Turn
	err := json.Unmarshal([]byte(input()), &turn)
	if err == nil {
		err = self.Process(&turn)
	}
	return end(`{"outputs":{}}`, err)
}

func end(text string, err error) int32 {
	if err != nil {
		hostErrorSet(block(err.Error()))
		return 1
	}
	hostOutputSet(block(text), uint64(len(text)))
	return 0
}

// A block of the host's memory with a copy of text.
func block(text string) uint64 {
	to := hostAlloc(uint64(len(text)))
	for i := range len(text) {
		hostStore(to+uint64(i), uint32(text[i]))
	}
	return to
}

func fromBlock(from uint64) string {
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

//go:wasmimport extism:host/env log_info
func hostLogInfo(text uint64)

//go:wasmimport extism:host/user __send_output
func hostSendOutput(outputs uint64)

//go:wasmimport extism:host/user __get_state
func hostGetState(key uint64) uint64

//go:wasmimport extism:host/user __set_state
func hostSetState(key, value uint64)

// A reactor has no program of its own.
func main() {}
