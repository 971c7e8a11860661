package events

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/sandglass/sandglass/core"
)

var newSamples = flag.Bool("new-samples", false, "write samples that are not there yet; those that are there are never written again")

const (
	testSession = core.SessionID("01KAS0E4ZG5T3V8W1N6Q2B7XYR")
	testBox     = "web.dev"
	testHost    = "glass"
)

var testTime = time.Date(2026, 3, 14, 15, 9, 26, 535897932, time.UTC)

// sample is the batch in testdata. It has every field, each shape of detail, bytes that
// are not UTF-8 and a clock that steps back.
func sample() *Batch {
	op := core.Operation{Box: testBox, Session: testSession, PID: 12, Proc: "12.1", Exe: "/usr/bin/python3",
		Surface: core.FilesRead, Action: core.ActRead, Target: "/etc/hostname", Verdict: core.Allowed, Rule: "fully-virtualised: files.read", Leak: true}
	b := &Batch{Version: 1, Session: testSession, Box: testBox, Host: testHost, First: 257}
	for i := range b.Prev {
		b.Prev[i] = byte(i * 7)
	}
	add := func(dt time.Duration, change func(*core.Operation)) {
		o := op
		o.Seq, o.Time = b.First+core.Seq(len(b.Ops)), testTime.Add(dt)
		change(&o)
		b.Ops = append(b.Ops, o)
	}
	add(0, func(o *core.Operation) {})
	add(3*time.Microsecond, func(o *core.Operation) {
		o.Surface, o.Action, o.Verdict, o.Leak = core.FilesWrite, core.ActRename, core.Redirected, false
		o.Target, o.Detail = "/tmp/\xff\xfe\n\x1b[31m", core.Detail{"to": "/tmp/b", "flags": ""}
	})
	add(-time.Hour, func(o *core.Operation) {
		o.Surface, o.Action, o.Verdict, o.Outcome, o.Errno = core.SystemKernel, core.ActMount, core.Blocked, core.Refused, "EPERM"
		o.Rule, o.Target, o.Leak = "filter", "mount", false
	})
	add(time.Second, func(o *core.Operation) {
		*o = core.Operation{Seq: o.Seq, Time: o.Time, Box: o.Box, Session: o.Session, Surface: core.SandboxLifecycle,
			Action: core.ActEnd, Outcome: core.Performed, Verdict: core.Allowed, Detail: core.Detail{"code": "0"}}
	})
	return b
}

// workload is a batch as a build gives it: few programs, many paths, most of them new.
func workload(n int) *Batch {
	b := &Batch{Version: 1, Session: testSession, Box: testBox, Host: testHost, First: 1}
	for i := range n {
		op := core.Operation{Seq: core.Seq(i + 1), Time: testTime.Add(time.Duration(i) * 3700), Box: testBox, Session: testSession, PID: 100 + i/40,
			Proc: core.ProcID(fmt.Sprint(100 + i/40)), Exe: "/usr/lib/go-1.26/pkg/tool/linux_amd64/compile", Surface: core.FilesRead, Action: core.ActRead,
			Target:  fmt.Sprintf("/usr/lib/go-1.26/src/net/http/internal/ascii/file_%d.go", i*2/3),
			Verdict: core.Allowed, Rule: "fully-virtualised: files.read"}
		if i%8 == 0 {
			op.Surface, op.Action, op.Verdict = core.FilesWrite, core.ActCreate, core.Redirected
			op.Detail = core.Detail{"flags": "O_WRONLY|O_CREAT|O_CLOEXEC", "mode": "0644"}
		}
		b.Ops = append(b.Ops, op)
	}
	return b
}

func encode(t testing.TB, b *Batch) []byte {
	t.Helper()
	body, err := EncodeBatch(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func decode(t testing.TB, body []byte) *Batch {
	t.Helper()
	b, err := DecodeBatch(body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// golden returns the sample of that name; see the flag new-samples.
func golden(t *testing.T, name string, make func() []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *newSamples {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			_, err = f.Write(make())
			err = errors.Join(err, f.Close())
		} else if errors.Is(err, os.ErrExist) {
			err = nil
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestBatchOfVersion1IsReadAndWrittenForEver(t *testing.T) {
	body := golden(t, "dev.sandglass.ops.v1.cbor", func() []byte { return encode(t, sample()) })
	if got, want := decode(t, body), sample(); !reflect.DeepEqual(got, want) {
		t.Errorf("read\n%+v\nwant\n%+v", got, want)
	}
	if got := encode(t, sample()); !bytes.Equal(got, body) {
		t.Errorf("written\n%x\nwant\n%x", got, body)
	}
}

func TestWhatIsDecodedIsWhatWasEncoded(t *testing.T) {
	big := sample()
	big.Ops = big.Ops[:1]
	big.Ops[0].Target = strings.Repeat("\xff", MaxString)
	one := workload(1)
	one.First, one.Ops[0].Seq = maxSeq-MaxBatchOps, maxSeq-MaxBatchOps
	for name, b := range map[string]*Batch{"one operation": one, "256 operations": workload(256), "as many as may be": workload(MaxBatchOps), "the longest string": big} {
		t.Run(name, func(t *testing.T) {
			if got := decode(t, encode(t, b)); !reflect.DeepEqual(got, b) {
				t.Errorf("read\n%+v\nwant\n%+v", got, b)
			}
		})
	}
}

func TestDecodingKeepsNothingOfTheBody(t *testing.T) {
	body := encode(t, sample())
	b := decode(t, body)
	clear(body)
	if !reflect.DeepEqual(b, sample()) {
		t.Error("the batch changed with the body it was read from")
	}
}

// wireBatch and wireOp are the encoding as package cbor sees it.
type wireBatch struct {
	_       struct{} `cbor:",toarray"`
	Version uint64
	Session string
	Box     string
	Host    string
	First   uint64
	Prev    []byte
	Base    uint64
	Dict    [][]byte
	Ops     []wireOp
}

type wireOp struct {
	_                                  struct{} `cbor:",toarray"`
	Time                               int64
	PID                                uint64
	Proc, Exe, Surface, Action, Target uint64
	Verdict, Outcome                   uint64
	Rule, Errno                        uint64
	Leak                               bool
	Detail                             []uint64
}

func TestAnIndependentReaderAgrees(t *testing.T) {
	for _, b := range []*Batch{sample(), workload(256)} {
		body := encode(t, b)
		mode, err := cbor.DecOptions{IndefLength: cbor.IndefLengthForbidden, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField}.DecMode()
		if err != nil {
			t.Fatal(err)
		}
		var w wireBatch
		if err := mode.Unmarshal(body, &w); err != nil {
			t.Fatal(err)
		}
		str := func(n uint64) string {
			if n == 0 {
				return ""
			}
			return string(w.Dict[n-1])
		}
		got := &Batch{Version: int(w.Version), Session: core.SessionID(w.Session), Box: w.Box, Host: w.Host, First: core.Seq(w.First), Prev: [32]byte(w.Prev)}
		now := int64(w.Base)
		for i, o := range w.Ops {
			now += o.Time
			op := core.Operation{Seq: got.First + core.Seq(i), Time: time.Unix(0, now).UTC(), Box: w.Box, Session: core.SessionID(w.Session), PID: int(o.PID),
				Proc: core.ProcID(str(o.Proc)), Exe: str(o.Exe), Surface: core.Surface(str(o.Surface)), Action: core.Action(str(o.Action)), Target: str(o.Target),
				Verdict: core.Verdict(o.Verdict), Outcome: core.Outcome(o.Outcome), Rule: str(o.Rule), Errno: str(o.Errno), Leak: o.Leak}
			for i := 0; i < len(o.Detail); i += 2 {
				if op.Detail == nil {
					op.Detail = core.Detail{}
				}
				op.Detail[str(o.Detail[i])] = str(o.Detail[i+1])
			}
			got.Ops = append(got.Ops, op)
		}
		if !reflect.DeepEqual(got, b) {
			t.Errorf("read\n%+v\nwant\n%+v", got, b)
		}
	}
}

func TestEncodingRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Batch)
		want   string
	}{
		"another version":                 {func(b *Batch) { b.Version = 2 }, "unknown version 2"},
		"no operations":                   {func(b *Batch) { b.Ops = nil }, "0 operations"},
		"too many operations":             {func(b *Batch) { b.Ops = make([]core.Operation, MaxBatchOps+1) }, "1025 operations"},
		"sequence number 0":               {func(b *Batch) { b.First = 0 }, "bad first sequence number 0"},
		"a gap":                           {func(b *Batch) { b.Ops[1].Seq++ }, "operation 259: its place in the batch is 258"},
		"an operation of another box":     {func(b *Batch) { b.Ops[1].Box = "other" }, `it is of box "other"`},
		"an operation of another session": {func(b *Batch) { b.Ops[1].Session = "other" }, `session "other"`},
		"a negative pid":                  {func(b *Batch) { b.Ops[1].PID = -1 }, "bad pid -1"},
		"a time before 1970":              {func(b *Batch) { b.Ops[1].Time = time.Time{} }, "cannot be told"},
		"a first time after 2262":         {func(b *Batch) { b.Ops[0].Time = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) }, "cannot be told"},
		"a string that is too long":       {func(b *Batch) { b.Ops[1].Target = strings.Repeat("a", MaxString+1) }, "string of 65537 bytes"},
		"a host that is not UTF-8":        {func(b *Batch) { b.Host = "\xff" }, "bad name"},
		"too much detail": {func(b *Batch) {
			b.Ops[1].Detail = core.Detail{}
			for i := range MaxDetail + 1 {
				b.Ops[1].Detail[fmt.Sprint(i)] = ""
			}
		}, "65 entries of detail"},
		"too many bytes": {func(b *Batch) {
			*b = *workload(20)
			for i := range b.Ops {
				b.Ops[i].Target = strings.Repeat(fmt.Sprint(i), MaxString/2)
			}
		}, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			b := sample()
			c.change(b)
			got, err := EncodeBatch([]byte("before"), b)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if string(got) != "before" {
				t.Errorf("%d bytes appended all the same", len(got)-len("before"))
			}
		})
	}
}

func TestDecodingRefuses(t *testing.T) {
	// The smallest batch: head; version, names, first, prev, base; dictionary; one operation.
	head := "89" + "01" + "6173" + "6162" + "6168" + "01" + "5820" + strings.Repeat("00", 32) + "0a"
	dict := "81" + "4161"
	op := "8d" + "00" + "01" + "00" + "01" + "01" + "01" + "01" + "01" + "00" + "01" + "00" + "f4" + "80"
	for name, c := range map[string]struct{ body, want string }{
		"(nothing: this one is valid)":      {head + dict + "81" + op, ""},
		"no bytes":                          {"", "cut short"},
		"an element more":                   {"8a" + head[2:] + dict + "81" + op + "00", "array of 10 elements"},
		"an operation with an element more": {head + dict + "81" + "8e" + op[2:] + "00", "array of 14 elements"},
		"bytes after the end":               {head + dict + "81" + op + "00", "more after the end"},
		"another version":                   {"8902" + head[4:] + dict + "81" + op, "unknown version 2"},
		"an integer in a longer form":       {"891801" + head[4:] + dict + "81" + op, "shortest form"},
		"an indefinite length":              {"9f" + head[2:] + dict + "81" + op + "ff", "indefinite"},
		"a session that is not UTF-8":       {"8901" + "61ff" + head[8:] + dict + "81" + op, "not UTF-8"},
		"a dictionary longer than all":      {head + "9affffffff" + "4161", "dictionary of 4294967295"},
		"a string longer than all":          {head + "81" + "5affffffff", "string of 4294967295"},
		"a string cut short":                {head + "81" + "44616161" + op, ""},
		"an empty string in it":             {head + "81" + "40" + "81" + op, "empty string"},
		"no operations":                     {head + dict + "80", "0 operations"},
		"more operations than bytes":        {head + dict + "82" + op, "2 operations"},
		"a reference past the dictionary":   {head + "80" + "81" + op, "past the dictionary"},
		"a leak of null":                    {head + dict + "81" + strings.Replace(op, "f4", "f6", 1), "not a boolean"},
		"half a pair of detail":             {head + dict + "81" + op[:len(op)-2] + "8101", "detail of 1"},
		"a key of detail twice":             {head + dict + "81" + op[:len(op)-2] + "8401010101", "do not ascend"},
		"a first time beside the base":      {head + dict + "81" + "8d01" + op[4:], "not the base"},
		"a time before 1970":                {head + dict + "81" + "8d29" + op[4:], ""},
		"a tag":                             {"c1" + head + dict + "81" + op, "major type 6"},
	} {
		t.Run(name, func(t *testing.T) {
			body, err := hex.DecodeString(c.body)
			if err != nil {
				t.Fatal(err)
			}
			_, err = DecodeBatch(body)
			if valid := strings.HasPrefix(name, "(nothing"); valid != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	t.Run("a body cut anywhere", func(t *testing.T) {
		body := encode(t, sample())
		for n := range body {
			if _, err := DecodeBatch(body[:n]); err == nil {
				t.Fatalf("%d of %d bytes were read as a whole", n, len(body))
			}
		}
	})
	t.Run("a body that is too long", func(t *testing.T) {
		if _, err := DecodeBatch(make([]byte, MaxBatchSize+1)); err == nil || !strings.Contains(err.Error(), "at most") {
			t.Errorf("error %v", err)
		}
	})
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(encode(f, sample()))
	f.Add(encode(f, workload(20)))
	f.Fuzz(func(t *testing.T, body []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		b, err := DecodeBatch(body)
		runtime.ReadMemStats(&after)
		if grown, limit := after.TotalAlloc-before.TotalAlloc, uint64(64*len(body)+64<<10); grown > limit {
			t.Errorf("%d bytes allocated for a body of %d", grown, len(body))
		}
		if err != nil {
			return
		}
		again, err := EncodeBatch(nil, b)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if b2 := decode(t, again); !reflect.DeepEqual(b, b2) {
			t.Errorf("decoded %+v\nand after encoding again %+v", b, b2)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	batch, dst := workload(256), []byte(nil)
	for b.Loop() {
		var err error
		if dst, err = EncodeBatch(dst[:0], batch); err != nil {
			b.Fatal(err)
		}
	}
	perOp(b, 256)
	b.ReportMetric(float64(len(dst))/256, "B/op-encoded")
}

func BenchmarkDecode(b *testing.B) {
	body := encode(b, workload(256))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeBatch(body); err != nil {
			b.Fatal(err)
		}
	}
	perOp(b, 256)
}

// BenchmarkDecodeReflect is package cbor on the same bytes, without making operations of
// what it read.
func BenchmarkDecodeReflect(b *testing.B) {
	body := encode(b, workload(256))
	for b.Loop() {
		var w wireBatch
		if err := cbor.Unmarshal(body, &w); err != nil {
			b.Fatal(err)
		}
	}
	perOp(b, 256)
}

func perOp(b *testing.B, n int) {
	b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "ops/s")
}
