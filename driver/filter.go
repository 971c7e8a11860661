package driver

import (
	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Classic BPF as seccomp takes it: opcodes of linux/bpf_common.h, struct seccomp_data
// of linux/seccomp.h.
const (
	bpfLoadWord = 0x20 // BPF_LD | BPF_W | BPF_ABS
	bpfJumpEq   = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
	bpfJumpGE   = 0x35 // BPF_JMP | BPF_JGE | BPF_K
	bpfJumpSet  = 0x45 // BPF_JMP | BPF_JSET | BPF_K
	bpfReturn   = 0x06 // BPF_RET | BPF_K

	retAllow  = 0x7fff0000 // SECCOMP_RET_ALLOW
	retNotify = 0x7fc00000 // SECCOMP_RET_USER_NOTIF

	offNR   = 0
	offArch = 4
	offArgs = 16
)

// Flags of the kernel's ABI that the filter looks at; the same on amd64 and arm64 but
// where said.
const (
	oWronly    = 0x1
	oRdwr      = 0x2
	oAccmode   = 0x3
	oCreat     = 0x40
	oExcl      = 0x80
	oTrunc     = 0x200
	oAppend    = 0x400
	oTmpfile   = 0x400000 // without O_DIRECTORY, which differs by architecture
	oPath      = 0x200000
	anyChange  = oWronly | oRdwr | oCreat | oTrunc | oTmpfile
	cloneNewNS = 0x00020000
	// every CLONE_NEW* that clone(2) takes: user, mount, pid, net, ipc, uts, cgroup
	cloneNewAny = 0x7e020000
	// for unshare(2), where 0x80 is CLONE_NEWTIME and not part of a signal number
	cloneNewTime = 0x80
)

// trap says when a call goes to the supervisor.
type trap struct {
	call sys.Call
	// mask, when not 0: only if one of these bits is set in the low word of argument arg.
	// The kernel looks at the low 32 bits of these arguments alone (int flags), so the
	// high word decides nothing.
	arg  int
	mask uint32
	// wide: the mask is of the high word too, for an argument that is a pointer
	wide bool
	// values, when there are any: only if the low word of argument arg is one of them
	values []uint32
	// also: besides, if the low word of argument also is value; of a trap with a mask
	also  int
	value uint32
}

// trapsOf lists the calls that go to the supervisor, the frequent ones first. What is
// refused is trapped at every setting, and what the supervisor counts.
func trapsOf(o core.Observe, counts counting) []trap {
	var ts []trap
	all := func(calls ...sys.Call) {
		for _, c := range calls {
			ts = append(ts, trap{call: c})
		}
	}
	switch o {
	case core.ObserveLean:
	case core.ObserveChanges:
		ts = append(ts, trap{call: sys.CallOpenat, arg: 2, mask: anyChange}, trap{call: sys.CallOpen, arg: 1, mask: anyChange})
		all(sys.CallOpenat2, sys.CallCreat)
	default:
		all(sys.CallOpenat, sys.CallOpen, sys.CallOpenat2, sys.CallCreat)
	}
	all(sys.CallExecve, sys.CallExecveat, sys.CallExitGroup, sys.CallExit)
	if o != core.ObserveLean {
		all(sys.CallUnlink, sys.CallUnlinkat, sys.CallMkdir, sys.CallMkdirat, sys.CallRmdir,
			sys.CallSymlink, sys.CallSymlinkat, sys.CallMknod, sys.CallMknodat,
			sys.CallTruncate, sys.CallFtruncate,
			sys.CallChmod, sys.CallFchmod, sys.CallFchmodat, sys.CallFchmodat2,
			sys.CallChown, sys.CallFchown, sys.CallLchown, sys.CallFchownat,
			sys.CallUtime, sys.CallUtimes, sys.CallFutimesat, sys.CallUtimensat,
			sys.CallBind)
	}
	// Always: directories of the real tree are renamed by the supervisor, hard links to
	// real files and forged overlay attributes are refused, at every setting.
	all(sys.CallRename, sys.CallRenameat, sys.CallRenameat2, sys.CallLink, sys.CallLinkat,
		sys.CallSetxattr, sys.CallLsetxattr, sys.CallFsetxattr, sys.CallSetxattrat,
		sys.CallRemovexattr, sys.CallLremovexattr, sys.CallFremovexattr, sys.CallRemovexattrat, sys.CallFileSetattr)
	if counts.Forks {
		ts = append(ts, forkTraps...)
	} else {
		ts = append(ts, trap{call: sys.CallClone, mask: cloneNewAny})
	}
	ts = append(ts, trap{call: sys.CallUnshare, mask: cloneNewAny | cloneNewTime})
	all(sys.CallClone3, sys.CallSetns, sys.CallNameToHandleAt, sys.CallOpenByHandleAt,
		sys.CallMount, sys.CallUmount2, sys.CallPivotRoot, sys.CallChroot,
		sys.CallOpenTree, sys.CallOpenTreeAttr, sys.CallMoveMount, sys.CallFsopen, sys.CallFsconfig,
		sys.CallFsmount, sys.CallFspick, sys.CallMountSetattr,
		sys.CallIoUringSetup, sys.CallIoUringEnter, sys.CallIoUringRegister)
	ts = append(ts, socketTraps...)
	ts = append(ts, limitTraps...)
	ts = append(ts, shmTraps...)
	ts = append(ts, trap{call: sys.CallIoctl, arg: 1, values: trappedIoctls})
	ts = append(ts, trap{call: sys.CallPrctl, values: []uint32{prSetPdeathsig, prSetMM}})
	if counts.Affinity {
		ts = append(ts, trap{call: sys.CallSchedSetaffinity})
	} else {
		ts = append(ts, trap{call: sys.CallSchedSetaffinity, mask: anyBit})
	}
	ts = append(ts, processTraps...)
	return append(ts, kernelTraps()...)
}

// filterProgram assembles the seccomp program for arch. A call through another
// architecture's table (i386 on amd64) or the x32 table goes to the supervisor, which
// refuses it: their numbers mean other calls. Everything not trapped is allowed; the
// kernel remembers that and does not run the program for it (SECCOMP_ARCH_NATIVE
// bitmap, Linux 5.11).
func filterProgram(arch sys.Arch, o core.Observe, counts counting) []sys.Insn {
	p := []sys.Insn{
		{Code: bpfLoadWord, K: offArch},
		{Code: bpfJumpEq, K: uint32(arch), JT: 1},
		{Code: bpfReturn, K: retNotify},
		{Code: bpfLoadWord, K: offNR},
	}
	if arch == sys.ArchAMD64 {
		p = append(p,
			sys.Insn{Code: bpfJumpEq, K: 0xffffffff, JF: 1}, // -1: a tracer skips the call
			sys.Insn{Code: bpfReturn, K: retAllow},
			sys.Insn{Code: bpfJumpGE, K: sys.X32Bit, JF: 1},
			sys.Insn{Code: bpfReturn, K: retNotify},
		)
	}
	for _, t := range trapsOf(o, counts) {
		nr, ok := t.call.Number(arch)
		if !ok {
			continue
		}
		if n := uint8(len(t.values)); n > 0 {
			p = append(p,
				sys.Insn{Code: bpfJumpEq, K: nr, JF: n + 3},
				sys.Insn{Code: bpfLoadWord, K: offArgs + 8*uint32(t.arg)})
			for i, v := range t.values {
				p = append(p, sys.Insn{Code: bpfJumpEq, K: v, JT: n - uint8(i)})
			}
			p = append(p, sys.Insn{Code: bpfReturn, K: retAllow}, sys.Insn{Code: bpfReturn, K: retNotify})
			continue
		}
		if t.mask == 0 {
			p = append(p, sys.Insn{Code: bpfJumpEq, K: nr, JF: 1}, sys.Insn{Code: bpfReturn, K: retNotify})
			continue
		}
		if t.wide {
			p = append(p,
				sys.Insn{Code: bpfJumpEq, K: nr, JF: 6},
				sys.Insn{Code: bpfLoadWord, K: offArgs + 8*uint32(t.arg)},
				sys.Insn{Code: bpfJumpSet, K: t.mask, JT: 2},
				sys.Insn{Code: bpfLoadWord, K: offArgs + 8*uint32(t.arg) + 4},
				sys.Insn{Code: bpfJumpSet, K: t.mask, JF: 1},
				sys.Insn{Code: bpfReturn, K: retNotify},
				sys.Insn{Code: bpfReturn, K: retAllow},
			)
			continue
		}
		if t.also != 0 {
			p = append(p,
				sys.Insn{Code: bpfJumpEq, K: nr, JF: 6},
				sys.Insn{Code: bpfLoadWord, K: offArgs + 8*uint32(t.arg)},
				sys.Insn{Code: bpfJumpSet, K: t.mask, JT: 2},
				sys.Insn{Code: bpfLoadWord, K: offArgs + 8*uint32(t.also)},
				sys.Insn{Code: bpfJumpEq, K: t.value, JF: 1},
				sys.Insn{Code: bpfReturn, K: retNotify},
				sys.Insn{Code: bpfReturn, K: retAllow},
			)
			continue
		}
		p = append(p,
			sys.Insn{Code: bpfJumpEq, K: nr, JF: 4},
			sys.Insn{Code: bpfLoadWord, K: offArgs + 8*uint32(t.arg)}, // little endian: the low word comes first
			sys.Insn{Code: bpfJumpSet, K: t.mask, JF: 1},
			sys.Insn{Code: bpfReturn, K: retNotify},
			sys.Insn{Code: bpfReturn, K: retAllow},
		)
	}
	return append(p, sys.Insn{Code: bpfReturn, K: retAllow})
}
