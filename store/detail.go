package store

import (
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"modernc.org/sqlite"

	"github.com/sandglass/sandglass/core"
)

// A detail is kept as one BLOB: for each key, in ascending order, the key and its value,
// each behind its length as a varint. Equal details have equal BLOBs, so that they can be
// in a dictionary.

func appendDetail(b []byte, d core.Detail) []byte {
	if len(d) == 0 {
		return b
	}
	var few [8]string
	keys := few[:0]
	for k := range d { // insertion sort: there are a handful
		i := len(keys)
		keys = append(keys, k)
		for ; i > 0 && keys[i-1] > k; i-- {
			keys[i] = keys[i-1]
		}
		keys[i] = k
	}
	for _, k := range keys {
		v := d[k]
		b = append(binary.AppendUvarint(b, uint64(len(k))), k...)
		b = append(binary.AppendUvarint(b, uint64(len(v))), v...)
	}
	return b
}

var errDetail = errors.New("a detail that is cut short")

// nextString takes a string off the front of an encoded detail.
func nextString(b []byte) (s, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, errDetail
	}
	b = b[size:]
	return b[:n], b[n:], nil
}

func decodeDetail(b []byte) (core.Detail, error) {
	if len(b) == 0 {
		return nil, nil
	}
	d := core.Detail{}
	for len(b) > 0 {
		k, rest, err := nextString(b)
		if err != nil {
			return nil, err
		}
		v, rest, err := nextString(rest)
		if err != nil {
			return nil, err
		}
		d[string(k)], b = string(v), rest
	}
	return d, nil
}

// detailFunction is sandglass_detail(body, key): the value, or NULL when there is none.
func detailFunction(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
	b, _ := args[0].([]byte)
	var key string
	switch k := args[1].(type) {
	case string:
		key = k
	case []byte:
		key = string(k)
	}
	for len(b) > 0 {
		k, rest, err := nextString(b)
		if err != nil {
			return nil, err
		}
		v, rest, err := nextString(rest)
		if err != nil {
			return nil, err
		}
		if string(k) == key {
			return TextOrBlob.Value(string(v)), nil
		}
		b = rest
	}
	return nil, nil
}

// registerAll gives the connections that are opened from now on every function that this
// package's SQL calls.
var registerAll = sync.OnceValue(func() error {
	if err := RegisterFunctions(); err != nil {
		return err
	}
	f := &sqlite.FunctionImpl{NArgs: 2, Scalar: detailFunction, Deterministic: true, VolatileArgs: true}
	if err := sqlite.RegisterFunction("sandglass_detail", f); err != nil {
		return fmt.Errorf("register function sandglass_detail: %w", err)
	}
	return nil
})
