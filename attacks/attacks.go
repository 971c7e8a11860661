package main

import (
	"os"
	"runtime"
	"strconv"

	"github.com/sandglass/sandglass/core"
)

// attack is one way out of a box.
type attack struct {
	Row     string // of the table of surfaces
	Name    string
	Program string
	Surface core.Surface
	Action  core.Action
	Target  string // a regular expression; the set-up may give another
	Args    []string
	Set     func(*outside) error // makes what is attacked
	// Always: Held is recorded whatever the surface is set to. Else what is neither blocked
	// nor allowed is redirected: it stays in the box.
	Always bool
	Held   core.Verdict
	// KernelDecides: when it is allowed the kernel may still refuse it.
	KernelDecides bool
	// Never: what is allowed is less than what the attack wants; outside stays unharmed.
	Never      bool
	Root       bool     // it works for root alone, without a box
	NoControl  string   // why it is not tried without a box
	Unrecorded string   // why nothing is on record
	Flags      []string // of sandglass run
	Grant      bool     // to allow it is to grant the one socket that it is aimed at
	MayLack    bool     // not every kernel has what it attacks; where it has not, there is nothing to refuse
}

// want is the verdict on record when the surface is set to v.
func (a *attack) want(v core.Verdict) core.Verdict {
	switch {
	case a.Always:
		return a.Held
	case v == core.Blocked:
		return core.Blocked
	case v == core.Allowed:
		return core.Allowed
	}
	return core.Redirected
}

// table lists the attacks.
func table() []attack {
	t := []attack{
		{Row: "B2", Name: "rewrite the path during open", Program: "pathrace.c", Surface: core.FilesWrite, Action: core.ActWrite, Set: fileAndOwn},
		{Row: "E3", Name: "exec and vfork during open", Program: "execrace.c", Surface: core.FilesWrite, Action: core.ActWrite, Set: file},
		{Row: "F9", Name: "an inherited descriptor", Program: "inherited.py", Surface: core.FilesWrite, Set: inherited, Unrecorded: "closed before the start"},
		{Row: "F7", Name: "a FIFO outside", Program: "fifo.py", Surface: core.FilesWrite, Action: core.ActWrite, Set: fifo},
		{Row: "F3", Name: "a spool outside", Program: "spool.sh", Surface: core.FilesWrite, Action: core.ActCreate, Set: spool},
		{Row: "H1", Name: "a node of one's own", Program: "node.py", Surface: core.FilesWrite, Action: core.ActMknod, Set: node, Root: true, Always: true, Held: core.Blocked},

		{Row: "E1", Name: "kill", Program: "kill.py", Surface: core.ProcessSignal, Action: core.ActSignal, Set: process, Always: true, Held: core.Blocked},
		{Row: "E1", Name: "setpriority", Program: "priority.py", Surface: core.ProcessSignal, Action: core.ActSchedule, Set: priority, Always: true, Held: core.Blocked},
		{Row: "E2", Name: "process_vm_writev", Program: "memory.py", Surface: core.ProcessMemory, Action: core.ActMemory, Set: memory, Always: true, Held: core.Blocked},
		{Row: "E2", Name: "/proc/PID/mem", Program: "procmem.py", Surface: core.ProcessMemory, Action: core.ActMemory, Set: memory, Always: true, Held: core.Blocked},
		{Row: "E2", Name: "ptrace", Program: "ptrace.py", Surface: core.ProcessMemory, Action: core.ActTrace, Set: memory, Always: true, Held: core.Blocked},
		{Row: "F9", Name: "pidfd_getfd", Program: "getfd.py", Surface: core.ProcessSignal, Action: core.ActSignal, Set: descriptor, Always: true, Held: core.Blocked},

		{Row: "F1", Name: "a path socket", Program: "stream.py", Surface: core.IPCUnix, Action: core.ActConnect, Set: pathServer},
		{Row: "F1", Name: "a datagram, sendto", Program: "datagram.py", Surface: core.IPCUnix, Action: core.ActSend, Set: datagrams("sendto")},
		{Row: "F1", Name: "a datagram, sendmsg", Program: "datagram.py", Surface: core.IPCUnix, Action: core.ActSend, Set: datagrams("sendmsg")},
		{Row: "F1", Name: "rewrite the address during connect", Program: "addressrace.c", Surface: core.IPCUnix, Action: core.ActConnect, Set: addressRace},
		{Row: "F2", Name: "an abstract socket", Program: "stream.py", Surface: core.IPCUnix, Action: core.ActConnect, Set: abstractServer},
		{Row: "F3", Name: "a service of the session bus outside", Program: "service.sh", Surface: core.IPCDBus, Action: core.ActConnect, Set: bus},
		{Row: "F3", Name: "the user's service manager", Program: "stream.py", Surface: core.IPCAgent, Action: core.ActConnect, Set: runServer("/run/user/" + strconv.Itoa(os.Getuid()) + "/systemd/private"), Root: true, MayLack: true},
		{Row: "F3", Name: "a container engine", Program: "stream.py", Surface: core.IPCAgent, Action: core.ActConnect, Set: runServer("/run/podman/podman.sock"), Root: true, MayLack: true},
		{Row: "F4", Name: "ssh-agent", Program: "agent.sh", Surface: core.IPCAgent, Action: core.ActConnect, Set: agent},
		{Row: "F5", Name: "a loopback server", Program: "loopback.py", Surface: core.IPCLoopback, Action: core.ActConnect, Set: loopback, Always: true, Held: core.Redirected},
		{Row: "F6", Name: "System V shared memory", Program: "shm.py", Surface: core.IPCShm, Action: core.ActAttach, Set: sysv},
		{Row: "F6", Name: "POSIX shared memory", Program: "posixshm.py", Surface: core.FilesWrite, Action: core.ActWrite, Set: posixShm},

		{Row: "F8", Name: "AF_ALG", Program: "family.py", Surface: core.IPCSocket, Action: core.ActSocket, Target: "AF_ALG .*", Args: []string{"38", "5", "0"}, KernelDecides: true},
		{Row: "F8", Name: "AF_VSOCK", Program: "family.py", Surface: core.IPCSocket, Action: core.ActSocket, Target: "AF_VSOCK .*", Args: []string{"40", "1", "0"}, KernelDecides: true},
		{Row: "F8", Name: "AF_PACKET", Program: "family.py", Surface: core.IPCSocket, Action: core.ActSocket, Target: "AF_PACKET .*", Args: []string{"17", "3", "768"}, Root: true, KernelDecides: true},
		{Row: "F8", Name: "raw IP", Program: "family.py", Surface: core.IPCSocket, Action: core.ActSocket, Target: "AF_INET SOCK_RAW", Args: []string{"2", "3", "1"}, Root: true, KernelDecides: true},

		{Row: "F10", Name: "TIOCSTI", Program: "terminal.py", Surface: core.DeviceTTY, Action: core.ActIoctl, Target: "TIOCSTI", Args: []string{"plain"}, Root: true},
		{Row: "F10", Name: "TIOCSTI with high bits", Program: "terminal.py", Surface: core.DeviceTTY, Action: core.ActIoctl, Target: "TIOCSTI", Args: []string{"high"}, Root: true},
		{Row: "F10", Name: "TIOCLINUX", Program: "terminal.py", Surface: core.DeviceTTY, Action: core.ActIoctl, Target: "TIOCLINUX", Args: []string{"linux"}, NoControl: "it takes a console"},

		{Row: "C2", Name: "a sysctl", Program: "setting.py", Surface: core.SettingsSysctl, Action: core.ActWrite, Args: []string{"/proc/sys/vm/swappiness"}, Root: true},
		{Row: "H8", Name: "core_pattern", Program: "setting.py", Surface: core.SettingsSysctl, Action: core.ActWrite, Args: []string{"/proc/sys/kernel/core_pattern"}, Root: true},
		{Row: "C2", Name: "/sys", Program: "setting.py", Surface: core.SettingsSysctl, Action: core.ActWrite, Args: []string{"/sys/kernel/uevent_seqnum"}, NoControl: "it is read-only outside too"},
		{Row: "E5", Name: "sysrq-trigger", Program: "setting.py", Surface: core.SystemPower, Action: core.ActWrite, Args: []string{"/proc/sysrq-trigger"}, Root: true},
		{Row: "D3", Name: "the sandbox's own state", Program: "look.py", Surface: core.SandboxSelf, Action: core.ActRead, Set: state},
		{Row: "H1", Name: "/dev/mem", Program: "look.py", Surface: core.DeviceMemory, Action: core.ActOpen, Args: []string{"/dev/mem"}, NoControl: "it is the machine's memory"},
		{Row: "H1", Name: "/dev/kmsg", Program: "device.py", Surface: core.DeviceMemory, Action: core.ActOpen, Args: []string{"/dev/kmsg"}, Root: true},
		{Row: "H1", Name: "/proc/kcore", Program: "look.py", Surface: core.DeviceMemory, Action: core.ActRead, Args: []string{"/proc/kcore"}, Root: true},
		{Row: "H7", Name: "clone3 with namespaces", Program: "clone3.c", Surface: core.SystemKernel, Action: core.ActNamespace, Target: ".*", Always: true, Held: core.Blocked},
	}
	if runtime.GOARCH == "amd64" {
		t = append(t,
			attack{Row: "B3", Name: "unlink by the i386 table", Program: "foreign.c", Surface: core.SystemABI, Action: core.ActSyscall, Set: unlinked, MayLack: true},
			attack{Row: "B3", Name: "unlink by the x32 table", Program: "call.py", Surface: core.SystemABI, Action: core.ActSyscall, Target: ".*", Args: []string{"0x40000057", "text:/nonexistent"}})
	}
	for i := range t {
		if t[i].Target == "" && t[i].Set == nil {
			t[i].Target = t[i].Args[0]
		}
	}
	return append(append(append(t, devices()...), calls()...), variants()...)
}

// devices are opened: nodes that are made for it, of a device that gives zeros.
func devices() (t []attack) {
	for _, d := range []struct {
		row, node string
		surface   core.Surface
	}{
		{"H1", "/dev/sdzz", core.DeviceDisk},
		{"H2", "/dev/input/event99", core.DeviceKeyboard},
		{"H3", "/dev/fb99", core.DeviceScreen},
		{"H5", "/dev/video99", core.DeviceCamera},
		{"H6", "/dev/snd/pcmC99D0c", core.DeviceSound},
		{"H7", "/dev/dri/renderD199", core.DeviceGPU},
		{"H7", "/dev/tpm99", core.DeviceTPM},
		{"H7", "/dev/bus/usb/099/099", core.DeviceUSB},
		{"H7", "/dev/ttyUSB99", core.DeviceSerial},
		{"H7", "/dev/vmci", core.DeviceVirtual},
		{"H7", "/dev/net/tap99", core.DeviceNet},
		{"H7", "/dev/cuse", core.DeviceFuse},
		{"H7", "/dev/sandglass99", core.DeviceOther},
	} {
		t = append(t, attack{Row: d.row, Name: d.node, Program: "device.py", Surface: d.surface, Action: core.ActOpen, Target: d.node,
			Args: []string{d.node}, Set: deviceNode, Root: true})
	}
	return t
}

// calls are refused by the filter or left to the kernel.
func calls() (t []attack) {
	for _, c := range []struct {
		row, name    string
		amd64, arm64 int
		surface      core.Surface
		action       core.Action
		never, root  bool
		args         []string
	}{
		{"H7", "bpf", 321, 280, core.SystemKernel, core.ActSyscall, false, true, []string{"0", "hex:02000000040000000400000001000000", "48"}},
		{"H7", "perf_event_open", 298, 241, core.SystemKernel, core.ActSyscall, false, true, []string{"hex:0100000070000000", "0", "-1", "-1", "0"}},
		{"H7", "syslog", 103, 116, core.SystemKernel, core.ActSyscall, false, true, []string{"10", "0", "0"}},
		{"H7", "userfaultfd", 323, 282, core.SystemKernel, core.ActSyscall, true, true, []string{"0"}},
		{"H7", "init_module", 175, 105, core.SystemKernel, core.ActSyscall, true, true, []string{"buffer", "0", "text:"}},
		{"H7", "fanotify_init", 300, 262, core.SystemKernel, core.ActSyscall, true, true, []string{"0", "0"}},
		{"H7", "quotactl", 179, 60, core.SystemKernel, core.ActSyscall, true, true, []string{"0x80000100", "0", "0", "0"}},
		{"H7", "acct", 163, 89, core.SystemKernel, core.ActSyscall, true, true, []string{"text:/nonexistent"}},
		{"H7", "swapon", 167, 224, core.SystemKernel, core.ActSyscall, true, true, []string{"text:/nonexistent", "0"}},
		{"E5", "kexec_load", 246, 104, core.SystemPower, core.ActSyscall, true, true, []string{"0", "0", "0", "0xffff"}},
		{"E5", "reboot", 169, 142, core.SystemPower, core.ActSyscall, true, true, []string{"0", "0", "0", "0"}},
		{"E5", "settimeofday", 164, 170, core.SystemClock, core.ActSyscall, true, true, []string{"0", "0"}},
		{"H7", "fsopen", 430, 430, core.SystemKernel, core.ActMount, true, true, []string{"text:tmpfs", "0"}},
		{"H7", "unshare", 272, 97, core.SystemKernel, core.ActNamespace, true, false, []string{"0x10000000"}},
		{"H7", "io_uring_setup", 425, 425, core.SystemKernel, core.ActIOUring, true, false, []string{"0", "buffer"}},
		{"H7", "open_by_handle_at", 304, 265, core.FilesHandle, core.ActHandle, true, true, []string{"-1", "buffer", "0"}},
		{"C3", "keyctl", 250, 219, core.SettingsKeyring, core.ActSyscall, false, false, []string{"0", "-3", "0"}},
		{"C3", "add_key", 248, 217, core.SettingsKeyring, core.ActSyscall, false, false, []string{"text:user", "text:sandglass", "buffer", "1", "-3"}},
	} {
		nr := c.amd64
		if runtime.GOARCH == "arm64" {
			nr = c.arm64
		}
		a := attack{Row: c.row, Name: c.name, Program: "call.py", Surface: c.surface, Action: c.action, Target: ".*",
			Args: append([]string{strconv.Itoa(nr)}, c.args...), Root: c.root, KernelDecides: true}
		if c.action == core.ActSyscall {
			a.Target = c.name
		}
		if c.never {
			a.Always, a.Held = true, core.Blocked
		}
		t = append(t, a)
	}
	return t
}

func isRoot() bool { return os.Geteuid() == 0 }
