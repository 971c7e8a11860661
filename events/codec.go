package events

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sandglass/sandglass/core"
)

// The encoding of a batch, version 1, is CBOR (RFC 8949) with integers in their shortest
// form and definite lengths; nothing else is accepted. In CDDL (RFC 8610):
//
//	batch  = [version: 1, session: tstr, box: tstr, host: tstr, first: uint, prev: bstr .size 32,
//	          base: uint, dictionary: [* bstr], ops: [+ op]]
//	op     = [time: int, pid: uint, proc: ref, exe: ref, surface: ref, action: ref, target: ref,
//	          verdict: uint, outcome: uint, rule: ref, errno: ref, leak: bool, detail: [* (key: ref, value: ref)]]
//	ref    = uint   ; 0 is the empty string, n the dictionary's nth
//
// base is the first operation's time in nanoseconds since 1970; time is what has passed
// since the operation before. detail's keys ascend. Sequence numbers, box and session of
// an operation follow from the batch.
//
// It is written by hand because it is most of the pipeline's work: package cbor, which
// the tests use as an independent reader, needs several times as long for the same bytes
// (BenchmarkDecodeReflect).

// EncodeBatch appends the encoding of b to dst. Errors are about a batch that breaks the
// rules above or the limits; nothing is appended then.
func EncodeBatch(dst []byte, b *Batch) ([]byte, error) {
	e := encoders.Get().(*encoder)
	defer encoders.Put(e)
	return e.encode(dst, b)
}

var encoders = sync.Pool{New: func() any { return &encoder{dict: make(map[string]uint64, 512)} }}

// encoder is the working memory of an encoding.
type encoder struct {
	dict map[string]uint64
	strs []byte // the dictionary's elements, encoded
	ops  []byte // the operations, encoded
	keys []string
	last [refs]struct { // what a field held in the operation before: most repeat it
		s string
		n uint64
	}
}

// The fields that are references to the dictionary.
const (
	refProc = iota
	refExe
	refSurface
	refAction
	refTarget
	refRule
	refErrno
	refs
)

var errText = errors.New("not UTF-8")

func (e *encoder) encode(dst []byte, b *Batch) ([]byte, error) {
	if b.Version != Version {
		return dst, fmt.Errorf("encode batch: unknown version %d", b.Version)
	}
	if n := len(b.Ops); n == 0 || n > MaxBatchOps {
		return dst, fmt.Errorf("encode batch: %d operations, 1 to %d are allowed", n, MaxBatchOps)
	}
	if b.First == 0 || b.First > maxSeq-MaxBatchOps {
		return dst, fmt.Errorf("encode batch: bad first sequence number %d", b.First)
	}
	for _, s := range [...]string{string(b.Session), b.Box, b.Host} {
		if len(s) > maxName || !utf8.ValidString(s) {
			return dst, fmt.Errorf("encode batch: bad name %q", core.Shorten(s, 80))
		}
	}
	clear(e.dict)
	clear(e.last[:])
	e.strs, e.ops = e.strs[:0], e.ops[:0]
	base := b.Ops[0].Time
	if base.Unix() < 0 || base.Unix() >= maxTime/int64(time.Second) {
		return dst, fmt.Errorf("encode batch: operation %d: time %v cannot be told in nanoseconds", b.First, base)
	}
	prev := base.UnixNano()
	for i := range b.Ops {
		op := &b.Ops[i]
		if err := e.op(op, b, b.First+core.Seq(i), &prev); err != nil {
			return dst, fmt.Errorf("encode batch: operation %d: %w", op.Seq, err)
		}
	}
	start := len(dst)
	dst = append(dst, majorArray<<5|9, Version)
	dst = appendHead(dst, majorText, uint64(len(b.Session)))
	dst = append(dst, b.Session...)
	dst = appendHead(dst, majorText, uint64(len(b.Box)))
	dst = append(dst, b.Box...)
	dst = appendHead(dst, majorText, uint64(len(b.Host)))
	dst = append(dst, b.Host...)
	dst = appendHead(dst, majorUint, uint64(b.First))
	dst = append(appendHead(dst, majorBytes, uint64(len(b.Prev))), b.Prev[:]...)
	dst = appendHead(dst, majorUint, uint64(base.UnixNano()))
	dst = append(appendHead(dst, majorArray, uint64(len(e.dict))), e.strs...)
	dst = append(appendHead(dst, majorArray, uint64(len(b.Ops))), e.ops...)
	if n := len(dst) - start; n > MaxBatchSize {
		return dst[:start], fmt.Errorf("encode batch: %d bytes, at most %d are allowed", n, MaxBatchSize)
	}
	return dst, nil
}

func (e *encoder) op(op *core.Operation, b *Batch, seq core.Seq, prev *int64) error {
	switch {
	case op.Seq != seq:
		return fmt.Errorf("its place in the batch is %d", seq)
	case op.Box != b.Box || op.Session != b.Session:
		return fmt.Errorf("it is of box %q, session %q", op.Box, op.Session)
	case op.PID < 0 || op.PID > maxPID:
		return fmt.Errorf("bad pid %d", op.PID)
	case len(op.Detail) > MaxDetail:
		return fmt.Errorf("%d entries of detail, at most %d are allowed", len(op.Detail), MaxDetail)
	case op.Time.Unix() < 0 || op.Time.Unix() >= maxTime/int64(time.Second):
		return fmt.Errorf("time %v cannot be told in nanoseconds", op.Time)
	}
	now := op.Time.UnixNano()
	o := append(e.ops, majorArray<<5|13)
	if d := now - *prev; d >= 0 {
		o = appendHead(o, majorUint, uint64(d))
	} else {
		o = appendHead(o, majorNegative, uint64(-1-d))
	}
	*prev = now
	o = appendHead(o, majorUint, uint64(op.PID))
	var err error
	ref := func(o []byte, field int, s string) []byte {
		l := &e.last[field]
		if l.s != s {
			var n uint64
			if n, err = e.ref(s, err); err != nil {
				return o
			}
			l.s, l.n = s, n
		}
		return appendHead(o, majorUint, l.n)
	}
	o = ref(o, refProc, string(op.Proc))
	o = ref(o, refExe, op.Exe)
	o = ref(o, refSurface, string(op.Surface))
	o = ref(o, refAction, string(op.Action))
	o = ref(o, refTarget, op.Target)
	o = appendHead(o, majorUint, uint64(op.Verdict))
	o = appendHead(o, majorUint, uint64(op.Outcome))
	o = ref(o, refRule, op.Rule)
	o = ref(o, refErrno, op.Errno)
	if op.Leak {
		o = append(o, cborTrue)
	} else {
		o = append(o, cborFalse)
	}
	o = appendHead(o, majorArray, 2*uint64(len(op.Detail)))
	if len(op.Detail) > 0 {
		e.keys = e.keys[:0]
		for k := range op.Detail { // insertion sort: there are a handful
			i := len(e.keys)
			e.keys = append(e.keys, k)
			for ; i > 0 && e.keys[i-1] > k; i-- {
				e.keys[i] = e.keys[i-1]
			}
			e.keys[i] = k
		}
		for _, k := range e.keys {
			var n uint64
			n, err = e.ref(k, err)
			o = appendHead(o, majorUint, n)
			n, err = e.ref(op.Detail[k], err)
			o = appendHead(o, majorUint, n)
		}
	}
	e.ops = o
	return err
}

// ref returns the reference to s, which it adds to the dictionary when it is new.
func (e *encoder) ref(s string, err error) (uint64, error) {
	if s == "" || err != nil {
		return 0, err
	}
	n, ok := e.dict[s]
	if !ok {
		if len(s) > MaxString {
			return 0, fmt.Errorf("string of %d bytes, at most %d are allowed", len(s), MaxString)
		}
		n = uint64(len(e.dict)) + 1
		e.dict[s] = n
		e.strs = append(appendHead(e.strs, majorBytes, uint64(len(s))), s...)
	}
	return n, nil
}

// The major types of CBOR, and two simple values.
const (
	majorUint     = 0
	majorNegative = 1
	majorBytes    = 2
	majorText     = 3
	majorArray    = 4
	cborFalse     = 0xf4
	cborTrue      = 0xf5
)

func appendHead(b []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n <= math.MaxUint8:
		return append(b, major|24, byte(n))
	case n <= math.MaxUint16:
		return append(b, major|25, byte(n>>8), byte(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

// decoder reads from b at i. After an error it stays where it is and reads zeros.
type decoder struct {
	b   []byte
	i   int
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("byte %d: "+format, append([]any{d.i}, args...)...)
	}
}

// head reads the head of a data item of one major type and returns its argument.
func (d *decoder) head(major byte) uint64 {
	if d.err == nil && d.i < len(d.b) {
		if c := d.b[d.i]; c>>5 == major {
			if c &= 31; c < 24 {
				d.i++
				return uint64(c)
			}
			return d.longHead()
		}
		d.fail("CBOR major type %d, not %d", d.b[d.i]>>5, major)
		return 0
	}
	d.fail("cut short")
	return 0
}

func (d *decoder) longHead() uint64 {
	c := d.b[d.i] & 31
	if c > 27 {
		d.fail("CBOR length that is indefinite or reserved")
		return 0
	}
	size := 1 << (c - 24)
	if len(d.b)-d.i-1 < size {
		d.fail("cut short")
		return 0
	}
	var n uint64
	for _, x := range d.b[d.i+1 : d.i+1+size] {
		n = n<<8 | uint64(x)
	}
	if least := [...]uint64{24, 1 << 8, 1 << 16, 1 << 32}[c-24]; n < least {
		d.fail("CBOR integer that is not in its shortest form")
		return 0
	}
	d.i += 1 + size
	return n
}

// uint reads an unsigned integer of at most limit.
func (d *decoder) uint(limit uint64) uint64 {
	n := d.head(majorUint)
	if n > limit {
		d.fail("%d, at most %d is allowed", n, limit)
		return 0
	}
	return n
}

// array reads the head of an array of exactly n elements.
func (d *decoder) array(n uint64) {
	if got := d.head(majorArray); d.err == nil && got != n {
		d.fail("array of %d elements, not %d", got, n)
	}
}

// bytes reads the content of a string of the given major type, of at most limit bytes.
func (d *decoder) bytes(major byte, limit int) []byte {
	n := d.head(major)
	if d.err != nil {
		return nil
	}
	if n > uint64(limit) {
		d.fail("string of %d bytes, at most %d are allowed", n, limit)
		return nil
	}
	if uint64(len(d.b)-d.i) < n {
		d.fail("cut short")
		return nil
	}
	s := d.b[d.i : d.i+int(n)]
	d.i += int(n)
	return s
}

func (d *decoder) text() string {
	s := d.bytes(majorText, maxName)
	if !utf8.Valid(s) {
		d.fail("%w", errText)
	}
	return string(s)
}

// DecodeBatch is the inverse of [EncodeBatch]. Nothing of body is kept. The strings of
// one batch share one piece of memory: who keeps a few of them for long clones them.
// Whatever body holds, it allocates less than 64 times body's length and 64 KiB.
func DecodeBatch(body []byte) (*Batch, error) {
	if len(body) > MaxBatchSize {
		return nil, fmt.Errorf("decode batch: %d bytes, at most %d are allowed", len(body), MaxBatchSize)
	}
	d := decoder{b: body}
	b := d.batch()
	if d.err == nil && d.i != len(body) {
		d.fail("more after the end")
	}
	if d.err != nil {
		return nil, fmt.Errorf("decode batch: %w", d.err)
	}
	return b, nil
}

// decodeHead reads a batch up to its first sequence number, which costs nothing beside
// the rest.
func decodeHead(body []byte) (*Batch, error) {
	d := decoder{b: body}
	b := d.names()
	if d.err != nil {
		return nil, fmt.Errorf("decode batch: %w", d.err)
	}
	return b, nil
}

func (d *decoder) names() *Batch {
	d.array(9)
	b := &Batch{Version: int(d.uint(math.MaxInt32))}
	if d.err == nil && b.Version != Version {
		d.fail("unknown version %d", b.Version)
	}
	b.Session = core.SessionID(d.text())
	b.Box = d.text()
	b.Host = d.text()
	b.First = core.Seq(d.uint(maxSeq - MaxBatchOps))
	if b.First == 0 {
		d.fail("sequence number 0")
	}
	return b
}

func (d *decoder) batch() *Batch {
	b := d.names()
	if prev := d.bytes(majorBytes, len(b.Prev)); copy(b.Prev[:], prev) != len(b.Prev) {
		d.fail("hash of %d bytes", len(prev))
	}
	now := int64(d.uint(maxTime))
	dict := d.dictionary()
	n := d.head(majorArray)
	if n == 0 || n > MaxBatchOps || n > uint64(len(d.b)-d.i)/minOpSize {
		d.fail("%d operations", n)
	}
	if d.err != nil {
		return nil
	}
	b.Ops = make([]core.Operation, n)
	for i := range b.Ops {
		op := &b.Ops[i]
		op.Seq, op.Box, op.Session = b.First+core.Seq(i), b.Box, b.Session
		if now = d.op(op, now, dict, i == 0); d.err != nil {
			return nil
		}
	}
	return b
}

// dictionary reads the strings that references name; the first is the empty one.
func (d *decoder) dictionary() []string {
	n := d.head(majorArray)
	if n > uint64(len(d.b)-d.i)/2 { // a string has a head and at least a byte
		d.fail("dictionary of %d strings", n)
	}
	if d.err != nil {
		return nil
	}
	dict := make([]string, n+1)
	start := d.i
	for range n {
		if len(d.bytes(majorBytes, MaxString)) == 0 {
			d.fail("empty string in the dictionary")
			return nil
		}
	}
	all := string(d.b[start:d.i]) // heads and all: one allocation
	d.i = start
	for k := range n {
		size := len(d.bytes(majorBytes, MaxString))
		dict[k+1] = all[d.i-start-size : d.i-start]
	}
	return dict
}

func (d *decoder) op(op *core.Operation, now int64, dict []string, first bool) int64 {
	base := now
	d.array(13)
	if d.err == nil && d.i < len(d.b) && d.b[d.i]>>5 == majorNegative {
		if n := d.head(majorNegative); n >= uint64(now) {
			d.fail("time before 1970")
		} else {
			now -= int64(n) + 1
		}
	} else if n := d.uint(maxTime); n > maxTime-uint64(now) {
		d.fail("time after 2262")
	} else {
		now += int64(n)
	}
	if first && now != base {
		d.fail("first time that is not the base")
	}
	op.Time = time.Unix(0, now).UTC()
	op.PID = int(d.uint(maxPID))
	op.Proc = core.ProcID(d.ref(dict))
	op.Exe = d.ref(dict)
	op.Surface = core.Surface(d.ref(dict))
	op.Action = core.Action(d.ref(dict))
	op.Target = d.ref(dict)
	op.Verdict = core.Verdict(d.uint(math.MaxUint8))
	op.Outcome = core.Outcome(d.uint(math.MaxUint8))
	op.Rule = d.ref(dict)
	op.Errno = d.ref(dict)
	if d.i < len(d.b) && d.err == nil && d.b[d.i]&^1 == cborFalse {
		op.Leak = d.b[d.i] == cborTrue
		d.i++
	} else {
		d.fail("not a boolean")
	}
	n := d.head(majorArray)
	if n%2 != 0 || n > 2*MaxDetail || n > uint64(len(d.b)-d.i) {
		d.fail("detail of %d strings", n)
	}
	if n == 0 || d.err != nil {
		return now
	}
	op.Detail = make(core.Detail, n/2)
	before := ""
	for i := range n / 2 {
		k, v := d.ref(dict), d.ref(dict)
		if i > 0 && k <= before {
			d.fail("keys of a detail that do not ascend")
		}
		if d.err != nil {
			return now
		}
		op.Detail[k], before = v, k
	}
	return now
}

// ref reads a reference to the dictionary.
func (d *decoder) ref(dict []string) string {
	if n := d.head(majorUint); n < uint64(len(dict)) {
		return dict[n]
	}
	d.fail("reference past the dictionary")
	return ""
}
