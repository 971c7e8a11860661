package driver

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// verdictOf runs prog as the kernel would on one call.
func verdictOf(t *testing.T, prog []sys.Insn, arch sys.Arch, nr uint32, args ...uint64) int {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(prog))
	for i, in := range prog {
		raw[i] = bpf.RawInstruction{Op: in.Code, Jt: in.JT, Jf: in.JF, K: in.K}
	}
	insns, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the program has an instruction that is not of classic BPF")
	}
	vm, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	// struct seccomp_data. The virtual machine reads words in network order, the kernel
	// in its own; the low half of an argument comes first on the machines we know.
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[0:], nr)
	binary.BigEndian.PutUint32(data[4:], uint32(arch))
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	v, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestFilter(t *testing.T) {
	for _, arch := range []sys.Arch{sys.ArchAMD64, sys.ArchARM64} {
		for _, o := range []core.Observe{core.ObserveFull, core.ObserveChanges, core.ObserveLean} {
			counts := counting{o == core.ObserveChanges, o == core.ObserveChanges} // as good a setting as any to have it with
			prog := filterProgram(arch, o, counts)
			trapped := map[sys.Call]trap{}
			for _, tr := range trapsOf(o, counts) {
				trapped[tr.call] = tr
			}
			for nr := range uint32(600) {
				var call sys.Call
				for _, c := range sys.Calls() {
					if n, ok := c.Number(arch); ok && n == nr {
						call = c
					}
				}
				tr, is := trapped[call]
				want := retAllow
				if is && (tr.mask == 0 && tr.values == nil || slices.Contains(tr.values, 0)) {
					want = retNotify
				}
				if got := verdictOf(t, prog, arch, nr, 0, 0, 0, 0, 0, 0); got != want {
					t.Errorf("%x %s: call %d (%s) without arguments: %#x, want %#x", arch, o, nr, call, got, want)
				}
				for _, v := range tr.values {
					args := make([]uint64, 6)
					args[tr.arg] = 0xdead<<32 | uint64(v)
					if got := verdictOf(t, prog, arch, nr, args...); got != retNotify {
						t.Errorf("%x %s: %s with %#x in argument %d: %#x", arch, o, call, v, tr.arg, got)
					}
				}
				if tr.also != 0 {
					args := make([]uint64, 6)
					args[tr.also] = 0xdead<<32 | uint64(tr.value)
					if got := verdictOf(t, prog, arch, nr, args...); got != retNotify {
						t.Errorf("%x %s: %s with %#x in argument %d: %#x", arch, o, call, tr.value, tr.also, got)
					}
				}
				for bit := uint64(1 << 32); tr.wide && bit != 0; bit <<= 1 {
					args := make([]uint64, 6)
					args[tr.arg] = bit
					if got := verdictOf(t, prog, arch, nr, args...); got != retNotify {
						t.Errorf("%x %s: %s with bit %#x in argument %d: %#x", arch, o, call, bit, tr.arg, got)
					}
				}
				for bit := uint32(1); is && bit != 0; bit <<= 1 {
					want := retAllow
					if tr.mask == 0 && tr.values == nil || tr.mask&bit != 0 || slices.Contains(tr.values, bit) {
						want = retNotify
					}
					args := make([]uint64, 6)
					args[tr.arg] = uint64(bit)
					if !tr.wide {
						args[tr.arg] |= 0xdead << 32
					}
					if got := verdictOf(t, prog, arch, nr, args...); got != want {
						t.Errorf("%x %s: %s with bit %#x in argument %d: %#x, want %#x", arch, o, call, bit, tr.arg, got, want)
					}
				}
			}
		}
	}
}

func TestFilterSendsForeignTablesToTheSupervisor(t *testing.T) {
	prog := filterProgram(sys.ArchAMD64, core.ObserveLean, counting{})
	for _, c := range []struct {
		name string
		arch sys.Arch
		nr   uint32
		want int
	}{
		{"i386", sys.ArchI386, 0, retNotify},
		{"arm on amd64", sys.ArchARM64, 63, retNotify},
		{"x32 read", sys.ArchAMD64, sys.X32Bit, retNotify},
		{"x32 openat", sys.ArchAMD64, sys.X32Bit | 257, retNotify},
		{"the highest number", sys.ArchAMD64, 0xfffffffe, retNotify},
		{"a call that a tracer skips", sys.ArchAMD64, 0xffffffff, retAllow},
		{"read", sys.ArchAMD64, 0, retAllow},
	} {
		if got := verdictOf(t, prog, c.arch, c.nr); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
	if got := verdictOf(t, filterProgram(sys.ArchARM64, core.ObserveLean, counting{}), sys.ArchARM, 5); got != retNotify {
		t.Errorf("arm on arm64: %#x, want it trapped", got)
	}
}

// What a box must never do is trapped at every setting of observe.
func TestFilterRefusalsDoNotDependOnObserve(t *testing.T) {
	for _, o := range []core.Observe{core.ObserveFull, core.ObserveChanges, core.ObserveLean} {
		prog := filterProgram(sys.ArchAMD64, o, counting{})
		for _, c := range []sys.Call{sys.CallMount, sys.CallUmount2, sys.CallPivotRoot, sys.CallChroot, sys.CallSetns, sys.CallClone3,
			sys.CallOpenTree, sys.CallMoveMount, sys.CallFsopen, sys.CallFsmount, sys.CallMountSetattr, sys.CallOpenByHandleAt,
			sys.CallNameToHandleAt, sys.CallIoUringSetup, sys.CallIoUringEnter, sys.CallIoUringRegister, sys.CallSetxattr} {
			nr, _ := c.Number(sys.ArchAMD64)
			if verdictOf(t, prog, sys.ArchAMD64, nr) != retNotify {
				t.Errorf("observe %s lets %s pass", o, c)
			}
		}
		for _, c := range []sys.Call{sys.CallClone, sys.CallUnshare} {
			nr, _ := c.Number(sys.ArchAMD64)
			for _, f := range cloneFlags {
				if c == sys.CallClone && f.name == "CLONE_NEWTIME" {
					continue // part of the exit signal there
				}
				if verdictOf(t, prog, sys.ArchAMD64, nr, f.bit) != retNotify {
					t.Errorf("observe %s lets %s(%s) pass", o, c, f.name)
				}
			}
		}
	}
}
