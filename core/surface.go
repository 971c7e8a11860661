package core

import (
	"fmt"
	"slices"
	"strings"
)

// Surface names a place where something could get in or out of a box, as a dotted
// path: a family and a member ("files.write"). The set is open: a newer supervisor
// may report a surface that an older dashboard does not know.
type Surface string

// The surfaces that this version reports.
const (
	FilesRead        Surface = "files.read"        // a file is opened for reading
	FilesWrite       Surface = "files.write"       // a file, directory, node or its metadata is changed
	FilesExec        Surface = "files.exec"        // a program is executed
	FilesHandle      Surface = "files.handle"      // a file is named by handle, past every path
	FilesShare       Surface = "files.share"       // a network file system or a share
	FilesPrivate     Surface = "files.private"     // a private place of the person: keys, tokens, profiles, mail
	ProcessLife      Surface = "process.life"      // a process starts or ends
	ProcessSignal    Surface = "process.signal"    // a process is signalled, or its priority, affinity or limits are set
	ProcessMemory    Surface = "process.memory"    // a process is traced, or its memory or descriptors are read or written
	SettingsDconf    Surface = "settings.dconf"    // the database of GSettings
	SettingsWine     Surface = "settings.wine"     // a registry of Wine's
	SettingsSysctl   Surface = "settings.sysctl"   // a setting of the kernel below /proc/sys or /sys
	SettingsKeyring  Surface = "settings.keyring"  // the kernel's keyrings
	IPCUnix          Surface = "ipc.unix"          // a Unix socket of a server, by path or abstract name
	IPCDBus          Surface = "ipc.dbus"          // the session's or the system's D-Bus
	IPCAgent         Surface = "ipc.agent"         // an agent of the user: keys, sound, display
	IPCLoopback      Surface = "ipc.loopback"      // a server on the loopback interface
	IPCShm           Surface = "ipc.shm"           // shared memory, semaphores and message queues, of System V and POSIX
	IPCSocket        Surface = "ipc.socket"        // a socket of an uncommon family or protocol
	DeviceDisk       Surface = "device.disk"       // block devices, loop, device mapper
	DeviceMemory     Surface = "device.memory"     // physical memory, ports and the kernel's log
	DeviceKeyboard   Surface = "device.keyboard"   // keyboards, mice and other input; uinput, hidraw
	DeviceScreen     Surface = "device.screen"     // framebuffers, virtual consoles
	DeviceCamera     Surface = "device.camera"     // video capture
	DeviceSound      Surface = "device.sound"      // sound
	DeviceGPU        Surface = "device.gpu"        // DRM and GPUs
	DeviceUSB        Surface = "device.usb"        // USB devices
	DeviceSerial     Surface = "device.serial"     // serial and parallel ports
	DeviceTPM        Surface = "device.tpm"        // trusted platform modules
	DeviceNet        Surface = "device.net"        // tun and tap, vhost, ppp
	DeviceVirtual    Surface = "device.virtual"    // KVM and other hypervisors
	DeviceFuse       Surface = "device.fuse"       // file systems in user space
	DeviceTTY        Surface = "device.tty"        // terminals: input that is forged
	DeviceOther      Surface = "device.other"      // any other device node
	NetOut           Surface = "net.out"           // a flow to another host
	NetIn            Surface = "net.in"            // a connection from outside to a port that is published
	NetDNS           Surface = "net.dns"           // a question for a name
	SystemKernel     Surface = "system.kernel"     // mounts, namespaces, io_uring, modules, bpf, perf and the like
	SystemPower      Surface = "system.power"      // reboot and shutdown
	SystemClock      Surface = "system.clock"      // the system's time is set
	SystemABI        Surface = "system.abi"        // a call through a foreign ABI (i386, x32)
	SandboxSelf      Surface = "sandbox.self"      // the sandbox's own state
	SandboxLimit     Surface = "sandbox.limit"     // a limit of the box was hit
	SandboxLifecycle Surface = "sandbox.lifecycle" // what the supervisor itself did to the box
	OutsideKill      Surface = "outside.kill"      // a process of the box died by a signal that no process of the box sent
	OutsideTrace     Surface = "outside.trace"     // a process of the box is traced from outside
	OutsideWrite     Surface = "outside.write"     // what the box holds was changed from outside
	OutsideRead      Surface = "outside.read"      // what the box holds was read from outside
)

// SurfaceInfo says what a policy can do with a surface.
type SurfaceInfo struct {
	Surface Surface
	Default Verdict   // of [DefaultPolicy]
	Others  []Verdict // that a policy can choose instead
}

// What no policy can choose is what no wall could keep or no supervisor perform: a
// signal to a process outside, which has no number in the box; a mount.
var surfaces = []SurfaceInfo{
	{FilesRead, Allowed, nil},
	{FilesWrite, Redirected, []Verdict{Blocked}},
	{FilesExec, Allowed, []Verdict{Blocked}},
	{FilesHandle, Blocked, nil},
	{FilesShare, Blocked, []Verdict{Allowed}}, // for reading
	{FilesPrivate, Blocked, nil},
	{ProcessLife, Redirected, nil},
	{ProcessSignal, Redirected, []Verdict{Blocked}},
	{ProcessMemory, Redirected, []Verdict{Blocked}},
	{SettingsDconf, Redirected, []Verdict{Blocked}},
	{SettingsWine, Redirected, []Verdict{Blocked}},
	{SettingsSysctl, Blocked, nil},
	{SettingsKeyring, Blocked, []Verdict{Allowed}},
	{IPCUnix, Blocked, []Verdict{Allowed}},
	{IPCDBus, Redirected, []Verdict{Blocked, Allowed}},
	{IPCAgent, Blocked, []Verdict{Allowed}},
	{IPCShm, Redirected, []Verdict{Blocked}},
	{IPCLoopback, Blocked, nil},
	{IPCSocket, Blocked, []Verdict{Allowed}},
	{DeviceDisk, Blocked, nil},
	{DeviceMemory, Blocked, nil},
	{DeviceKeyboard, Blocked, []Verdict{Allowed}},
	{DeviceScreen, Blocked, []Verdict{Allowed}},
	{DeviceCamera, Blocked, []Verdict{Allowed}},
	{DeviceSound, Blocked, []Verdict{Allowed}},
	{DeviceGPU, Blocked, []Verdict{Allowed}},
	{DeviceUSB, Blocked, []Verdict{Allowed}},
	{DeviceSerial, Blocked, []Verdict{Allowed}},
	{DeviceTPM, Blocked, []Verdict{Allowed}},
	{DeviceNet, Blocked, nil},
	{DeviceVirtual, Blocked, []Verdict{Allowed}},
	{DeviceFuse, Blocked, nil},
	{DeviceTTY, Blocked, nil},
	{DeviceOther, Blocked, nil},
	{NetOut, Allowed, []Verdict{Blocked}},
	{NetIn, Blocked, nil},
	{NetDNS, Allowed, []Verdict{Blocked}},
	{SystemKernel, Blocked, []Verdict{Allowed}},
	{SystemPower, Blocked, nil},
	{SystemClock, Blocked, nil},
	{SystemABI, Blocked, nil},
	{SandboxSelf, Blocked, nil},
	{SandboxLimit, Blocked, nil},
	{SandboxLifecycle, Allowed, nil},
	{OutsideKill, Allowed, nil},
	{OutsideTrace, Allowed, nil},
	{OutsideWrite, Allowed, nil},
	{OutsideRead, Allowed, nil},
}

// Surfaces lists the surfaces that this version reports, sorted by name.
func Surfaces() []Surface {
	var s []Surface
	for _, i := range surfaces {
		s = append(s, i.Surface)
	}
	slices.Sort(s)
	return s
}

// LookupSurface returns what a policy can do with s, or an error with a hint.
func LookupSurface(s string) (SurfaceInfo, error) {
	for _, i := range surfaces {
		if string(i.Surface) == s {
			return i, nil
		}
	}
	var near []string
	family, _, _ := strings.Cut(s, ".")
	for _, x := range Surfaces() {
		if f, _, _ := strings.Cut(string(x), "."); f == family {
			near = append(near, string(x))
		}
	}
	var hints []string
	var all []string
	for _, x := range Surfaces() {
		all = append(all, string(x))
	}
	if n := nearest(s, all); n != "" {
		hints = append(hints, fmt.Sprintf("did you mean %q?", n))
	}
	if near != nil {
		hints = append(hints, "surfaces of this family: "+strings.Join(near, ", "))
	} else {
		hints = append(hints, "surfaces: "+strings.Join(all, ", "))
	}
	return SurfaceInfo{}, Hint(fmt.Errorf("unknown surface %q", Shorten(s, 80)), hints...)
}

// Leaks says whether what is allowed on the surface counts as a leak: it touches
// something outside of the box that the default policy would not let it.
func (s Surface) Leaks() bool {
	for _, i := range surfaces {
		if i.Surface == s {
			return i.Default != Allowed || strings.HasPrefix(string(s), "outside.")
		}
	}
	return true
}

// Action says what an operation does on its surface: a verb of the field.
type Action string

// The actions that this version reports.
const (
	ActRead        Action = "read"         // open for reading
	ActWrite       Action = "write"        // open an existing file for writing
	ActCreate      Action = "create"       // open with O_CREAT or O_TMPFILE, creat
	ActPath        Action = "path"         // open with O_PATH: a place, not its content
	ActTruncate    Action = "truncate"     // truncate, ftruncate
	ActDelete      Action = "delete"       // unlink
	ActRmdir       Action = "rmdir"        // remove a directory
	ActRename      Action = "rename"       // target: the old name; detail.to: the new one
	ActExchange    Action = "exchange"     // RENAME_EXCHANGE
	ActLink        Action = "link"         // target: the new name; detail.from: the existing file
	ActSymlink     Action = "symlink"      // target: the new name; detail.from: the text of the link
	ActMkdir       Action = "mkdir"        //
	ActMknod       Action = "mknod"        //
	ActBind        Action = "bind"         // a path socket is made
	ActChmod       Action = "chmod"        //
	ActChown       Action = "chown"        //
	ActUtime       Action = "utime"        //
	ActSetxattr    Action = "setxattr"     // target: the file; detail.name: the attribute
	ActRemovexattr Action = "removexattr"  //
	ActSetattr     Action = "setattr"      // file_setattr(2): inode flags
	ActHandle      Action = "handle"       // name_to_handle_at, open_by_handle_at
	ActPass        Action = "pass"         // a descriptor of a private file is sent to another process; detail.fd
	ActExec        Action = "exec"         // target: the program; detail.argv
	ActStart       Action = "start"        // a process was first seen; detail.ppid
	ActExit        Action = "exit"         // a process ended; detail.code or detail.signal
	ActSignal      Action = "signal"       // target: a process; detail.signal
	ActSchedule    Action = "schedule"     // priority, policy, affinity or I/O priority is set
	ActLimit       Action = "limit"        // resource limits of another process are set
	ActTrace       Action = "trace"        // ptrace: attach, seize, or be traced by the parent
	ActMemory      Action = "memory"       // memory of another process is read or written
	ActGetfd       Action = "getfd"        // a descriptor is taken from another process
	ActCompare     Action = "compare"      // kcmp(2)
	ActConnect     Action = "connect"      // target: the address; detail.how: performed by the supervisor
	ActSend        Action = "send"         // a datagram to an address
	ActAccept      Action = "accept"       // a flow comes in by a published port; detail.flow, detail.from
	ActIdentify    Action = "identify"     // what a flow said of itself; target: the name; detail.flow, detail.by, detail.alpn, detail.cert
	ActCount       Action = "count"        // a flow goes on; detail.flow, and what it has carried so far
	ActClose       Action = "close"        // a flow has ended; detail.flow, what it carried, detail.reason
	ActResolve     Action = "resolve"      // the resolver was asked; target: the name; detail.type, detail.rcode, detail.answers
	ActTunnel      Action = "tunnel"       // questions below one name carry data; target: that name
	ActConfigure   Action = "configure"    // an interface, address or route is to be changed
	ActAsk         Action = "ask"          // a person is asked about a flow, or has answered; detail.ask, detail.answer
	ActListen      Action = "listen"       //
	ActAttach      Action = "attach"       // shared memory, semaphores or a queue are found or made; target: the call and key, or the name
	ActSocket      Action = "socket"       // target: family and type
	ActOpen        Action = "open"         // a device is opened; detail.flags
	ActIoctl       Action = "ioctl"        // target: the request's name; detail.path
	ActHit         Action = "hit"          // target: the limit's name; detail.limit, detail.used
	ActMount       Action = "mount"        // mount family
	ActNamespace   Action = "namespace"    // unshare, setns, clone with a namespace flag, chroot, pivot_root
	ActIOUring     Action = "io_uring"     //
	ActSyscall     Action = "syscall"      // a call that is refused as such; target: its name
	ActBegin       Action = "begin"        // a session begins; detail: command, stdio, walls
	ActEnd         Action = "end"          // a session ends; detail.code
	ActFreeze      Action = "freeze"       // the session's processes are stopped in their tracks
	ActThaw        Action = "thaw"         // and go on
	ActPolicy      Action = "policy"       // the policy is changed while the session runs; target: a surface or socket
	ActKill        Action = "kill"         // the session is ended by force; detail.why
	ActTrouble     Action = "trouble"      // something beside the way failed; target: of which part; detail.error
	ActSlow        Action = "backpressure" // the log could not keep up and the box was slowed down
)
