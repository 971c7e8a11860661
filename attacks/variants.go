package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"encoding/json"

	"github.com/sandglass/sandglass/core"
)

// variants are further ways to what the table attacks: other calls, other networks, sockets
// that were granted, several messages at once.
func variants() []attack {
	host := []string{"--net", "host"}
	t := []attack{
		{Row: "F1", Name: "a path socket, granted", Program: "stream.py", Surface: core.IPCUnix, Action: core.ActConnect, Set: pathServer, Grant: true},
		{Row: "F1", Name: "a path socket, host network", Program: "stream.py", Surface: core.IPCUnix, Action: core.ActConnect, Set: pathServer, Flags: host},
		{Row: "F1", Name: "a datagram, sendto, granted", Program: "datagram.py", Surface: core.IPCUnix, Action: core.ActSend, Set: datagrams("sendto"), Grant: true},
		{Row: "F1", Name: "a datagram, sendmsg, granted", Program: "datagram.py", Surface: core.IPCUnix, Action: core.ActSend, Set: datagrams("sendmsg"), Grant: true},
		{Row: "F1", Name: "sendmmsg, the last of several", Program: "sendmmsg.py", Surface: core.IPCUnix, Action: core.ActSend, Set: datagramTo(false), Always: true, Held: core.Blocked},
		{Row: "F2", Name: "sendmmsg, the last, host network", Program: "sendmmsg.py", Surface: core.IPCUnix, Action: core.ActSend, Set: datagramTo(true), Always: true, Held: core.Blocked, Flags: host},
		{Row: "F2", Name: "an abstract socket, host network", Program: "stream.py", Surface: core.IPCUnix, Action: core.ActConnect, Set: abstractServer, Flags: host},
		{Row: "F2", Name: "rewrite the address, host network", Program: "sendrace.c", Surface: core.IPCUnix, Action: core.ActSend, Set: sendRace(true), Flags: host, KernelDecides: true},
		{Row: "F1", Name: "rewrite the address during sendto", Program: "sendrace.c", Surface: core.IPCUnix, Action: core.ActSend, Set: sendRace(false), KernelDecides: true},
		{Row: "F1", Name: "rewrite the address, host network", Program: "addressrace.c", Surface: core.IPCUnix, Action: core.ActConnect, Set: addressRace, Flags: host},
		{Row: "F9", Name: "SCM_RIGHTS of a directory", Program: "rights.py", Surface: core.IPCUnix, Action: core.ActConnect, Set: rightsGiver, Grant: true, Never: true},
		{Row: "F4", Name: "ssh-agent, granted", Program: "agent.sh", Surface: core.IPCAgent, Action: core.ActConnect, Set: agent, Grant: true},
		{Row: "F6", Name: "System V semaphores", Program: "queue.py", Surface: core.IPCShm, Action: core.ActAttach, Set: sysvObject("sem")},
		{Row: "F6", Name: "System V queue", Program: "queue.py", Surface: core.IPCShm, Action: core.ActAttach, Set: sysvObject("msg")},
		{Row: "D3", Name: "the daemon's socket", Program: "stream.py", Surface: core.SandboxSelf, Action: core.ActConnect, Set: houseSocket("control.sock"), NoControl: "it is the daemon's"},
		{Row: "D3", Name: "the daemon's socket, host network", Program: "stream.py", Surface: core.SandboxSelf, Action: core.ActConnect, Set: houseSocket("control.sock"), Flags: host, NoControl: "it is the daemon's"},
		{Row: "D3", Name: "the bus's socket, host network", Program: "stream.py", Surface: core.SandboxSelf, Action: core.ActConnect, Set: houseSocket("bus.sock"), Flags: host, NoControl: "it is the daemon's"},
		{Row: "D3", Name: "the dashboard, host network", Program: "loopback.py", Surface: core.SandboxSelf, Action: core.ActConnect, Set: dashboard, Flags: host, NoControl: "it is the daemon's"},
		{Row: "D3", Name: "end the daemon", Program: "kill.py", Surface: core.ProcessSignal, Action: core.ActSignal, Set: daemonProcess, NoControl: "it is the daemon", Always: true, Held: core.Blocked},
	}
	if runtime.GOARCH != "amd64" {
		return t
	}
	one := func(name, nr string, act core.Action, sf core.Surface, args ...string) attack {
		return attack{Row: "E1", Name: name, Program: "call.py", Surface: sf, Action: act, Set: processCall(append([]string{nr}, args...)), Always: true, Held: core.Blocked}
	}
	sig, mem := core.ProcessSignal, core.ProcessMemory
	t = append(t,
		one("tkill", "200", core.ActSignal, sig, "PID", "9"), one("tgkill", "234", core.ActSignal, sig, "PID", "PID", "9"),
		one("rt_sigqueueinfo", "129", core.ActSignal, sig, "PID", "9", "hex:0900000000000000ffffffff"), one("rt_tgsigqueueinfo", "297", core.ActSignal, sig, "PID", "PID", "9", "hex:0900000000000000ffffffff"),
		one("prlimit", "302", core.ActLimit, sig, "PID", "7", "hex:08000000000000000800000000000000", "0"), one("sched_setscheduler", "144", core.ActSchedule, sig, "PID", "5", "buffer"),
		one("sched_setaffinity", "203", core.ActSchedule, sig, "PID", "8", "hex:0100000000000000"), one("ioprio_set", "251", core.ActSchedule, sig, "1", "PID", "0x6000"),
		one("pidfd_open", "434", core.ActSignal, sig, "PID", "0"), one("kcmp", "312", core.ActCompare, mem, "PID", "PID", "0", "0", "0"))
	call := func(name, nr string, sf core.Surface, act core.Action, target string, args ...string) attack {
		return attack{Row: "H7", Name: name, Program: "call.py", Surface: sf, Action: act, Target: target, Args: append([]string{nr}, args...), Root: true, Always: true, Held: core.Blocked, KernelDecides: true}
	}
	k, no := core.SystemKernel, "text:/nonexistent"
	t = append(t,
		call("mount", "165", k, core.ActMount, "/nonexistent", "text:none", no, "text:tmpfs", "0", "0"), call("umount2", "166", k, core.ActMount, "/nonexistent", no, "0"),
		call("open_tree", "428", k, core.ActMount, "/", "-100", "text:/", "1"), call("setns", "308", k, core.ActNamespace, ".*", "0", "0x4000000"), call("chroot", "161", k, core.ActNamespace, "/nonexistent", no),
		call("name_to_handle_at", "303", core.FilesHandle, core.ActHandle, "/etc/passwd", "-100", "text:/etc/passwd", "hex:8000000000000000", "buffer", "0"),
		call("swapoff", "168", k, core.ActSyscall, "swapoff", no), call("fspick", "433", k, core.ActMount, "/", "-100", "text:/", "0"),
		attack{Row: "F8", Name: "MPTCP", Program: "family.py", Surface: core.IPCSocket, Action: core.ActSocket, Target: "AF_INET SOCK_STREAM", Args: []string{"2", "1", "262"}, KernelDecides: true},
		attack{Row: "F8", Name: "generic netlink", Program: "family.py", Surface: core.IPCSocket, Action: core.ActSocket, Target: "AF_NETLINK SOCK_RAW", Args: []string{"16", "3", "16"}, KernelDecides: true},
		attack{Row: "F8", Name: "audit", Program: "family.py", Surface: core.IPCSocket, Action: core.ActSocket, Target: "AF_NETLINK SOCK_RAW", Args: []string{"16", "3", "9"}, KernelDecides: true},
		attack{Row: "F8", Name: "AF_XDP", Program: "family.py", Surface: core.IPCSocket, Action: core.ActSocket, Target: ".* SOCK_RAW", Args: []string{"44", "3", "0"}, Root: true, KernelDecides: true},
	)
	return t
}

// processCall is a process; PID among the arguments stands for it.
func processCall(args []string) func(*outside) error {
	return func(o *outside) error {
		err := process(o)
		if err != nil {
			return err
		}
		pid := o.args[0]
		o.args = nil
		for _, a := range args {
			o.args = append(o.args, strings.ReplaceAll(a, "PID", pid))
		}
		o.harmed = nil // not all of them show in what it says
		return nil
	}
}

// datagramTo is a server of datagrams outside, and a path for a socket of the attack's own.
func datagramTo(abstract bool) func(*outside) error {
	return func(o *outside) error {
		name := o.path("d")
		if abstract {
			name = "@sandglass-" + filepath.Base(o.dir)
		}
		o.args, o.target = []string{name, o.path("own")}, regexp.QuoteMeta(name)
		return o.hears(name)
	}
}

// sendRace is the same with two names of one length.
func sendRace(abstract bool) func(*outside) error {
	return func(o *outside) error {
		own := o.path("own")
		name := o.path("out")
		if abstract {
			name = "@" + strings.Repeat("x", 9) + filepath.Base(o.dir)
			name = (name + strings.Repeat("y", len(own)))[:len(own)]
		}
		o.args, o.target = []string{own, name}, regexp.QuoteMeta(name)
		return o.hears(name)
	}
}

// hears listens for datagrams; what comes after them tells that they have all been heard.
func (o *outside) hears(name string) error {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	o.end(func() { c.Close() })
	heard := make(chan string, 1<<14)
	go func() {
		b := make([]byte, 16)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			heard <- string(b[:n])
		}
	}()
	o.harmed = func() bool {
		end, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			return true
		}
		defer end.Close()
		io.WriteString(end, "end")
		return heardAny(heard)
	}
	return nil
}

// rightsGiver sends whoever connects a descriptor of a directory with the canary in it.
func rightsGiver(o *outside) error {
	if _, err := o.canary(); err != nil {
		return err
	}
	p := o.path("giver")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
	if err != nil {
		return err
	}
	o.end(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if d, err := os.Open(o.dir); err == nil {
				c.WriteMsgUnix([]byte("x"), syscall.UnixRights(int(d.Fd())), nil)
				d.Close()
			}
			c.Close()
		}
	}()
	o.args, o.target = []string{p}, regexp.QuoteMeta(p)
	return nil
}

// sysvObject is a set of semaphores or a queue; finding it is the attack.
func sysvObject(kind string) func(*outside) error {
	return func(o *outside) error {
		lastKey.Lock()
		lastKey.n++
		key := lastKey.n
		lastKey.Unlock()
		const ipcCreat = 0o1000
		var id uintptr
		var e syscall.Errno
		if kind == "sem" {
			id, _, e = syscall.RawSyscall(syscall.SYS_SEMGET, uintptr(key), 1, ipcCreat|0o600)
			o.end(func() { syscall.RawSyscall(syscall.SYS_SEMCTL, id, 0, 0) })
		} else {
			id, _, e = syscall.RawSyscall(syscall.SYS_MSGGET, uintptr(key), ipcCreat|0o600, 0)
			o.end(func() { syscall.RawSyscall(syscall.SYS_MSGCTL, id, 0, 0) })
		}
		if e != 0 {
			return fmt.Errorf("%sget: %w", kind, e)
		}
		o.args, o.target = []string{kind, strconv.Itoa(key)}, kind+"get 0x"+strconv.FormatInt(int64(key), 16)
		return nil
	}
}

// daemonStatus is what the daemon says of itself; a box is run first, which starts it.
func (o *outside) daemonStatus() (pid int, port string, err error) {
	if out, code, err := o.lab.run(o.dir, nil, o.lab.binary, "run", "--rm", "--", "true"); err != nil || code != 0 {
		return 0, "", fmt.Errorf("run: %d %v %s", code, err, out)
	}
	for range 50 {
		out, err := exec.Command("env", "SANDGLASS_HOME="+o.lab.state, o.lab.binary, "status", "--json").Output()
		var s struct {
			PID     int    `json:"pid"`
			Address string `json:"address"`
		}
		if err == nil && json.Unmarshal(out, &s) == nil && s.Address != "" {
			return s.PID, s.Address[strings.LastIndexByte(s.Address, ':')+1:], nil
		}
	}
	return 0, "", fmt.Errorf("the daemon does not say where it is")
}

func houseSocket(name string) func(*outside) error {
	return func(o *outside) error {
		p := filepath.Join(o.lab.state, name)
		o.args, o.target = []string{p}, regexp.QuoteMeta(p)
		_, _, err := o.daemonStatus()
		return err
	}
}

func dashboard(o *outside) error {
	_, port, err := o.daemonStatus()
	o.args, o.target = []string{port}, "127.0.0.1:"+port
	return err
}

func daemonProcess(o *outside) error {
	pid, _, err := o.daemonStatus()
	o.args, o.target = []string{strconv.Itoa(pid)}, "pid "+strconv.Itoa(pid)
	return err
}
