package driver

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandglass/sandglass/core"
)

func TestDeviceSurface(t *testing.T) {
	for p, want := range map[string]core.Surface{
		"/dev/sda": core.DeviceDisk, "/dev/nvme0n1p2": core.DeviceDisk, "/dev/disk/by-uuid/x": core.DeviceDisk, "/dev/mapper/root": core.DeviceDisk,
		"/dev/mem": core.DeviceMemory, "/dev/kmsg": core.DeviceMemory, "/dev/cpu/0/msr": core.DeviceMemory,
		"/dev/input/event3": core.DeviceKeyboard, "/dev/uinput": core.DeviceOther, "/dev/fb0": core.DeviceScreen, "/dev/vcsa1": core.DeviceScreen,
		"/dev/tty1": core.DeviceScreen, "/dev/video0": core.DeviceCamera, "/dev/v4l/by-id/cam": core.DeviceCamera, "/dev/snd/pcmC0D0c": core.DeviceSound,
		"/dev/dri/renderD128": core.DeviceGPU, "/dev/bus/usb/001/002": core.DeviceUSB, "/dev/ttyS0": core.DeviceSerial, "/dev/ttyUSB0": core.DeviceSerial,
		"/dev/tpmrm0": core.DeviceTPM, "/dev/net/tun": core.DeviceNet, "/dev/kvm": core.DeviceVirtual, "/dev/fuse": core.DeviceFuse, "/dev/whatever": core.DeviceOther,
		"/dev/pts/3": "", "/dev/shm/x": "", "/dev/null": "", "/etc/passwd": "", "/device": "",
	} {
		if got, ok := deviceSurface(p); got != want || ok != (want != "") {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
}

// Devices are absent, each try on record by what it is of; a grant is a descriptor that the
// supervisor opened, no more of it than the grant is for.
func TestDevices(t *testing.T) {
	l := newLab(t)
	var args, want []string
	for _, d := range []string{"disk /dev/sda", "memory /dev/kmsg", "memory /dev/mem", "keyboard /dev/input/event0", "screen /dev/fb0", "screen /dev/vcs1", "camera /dev/video0",
		"sound /dev/snd/controlC0", "gpu /dev/dri/card0", "usb /dev/bus/usb/001/001", "serial /dev/ttyS0", "tpm /dev/tpm0", "net /dev/net/tun", "virtual /dev/kvm", "fuse /dev/fuse", "other /dev/vga"} {
		sf, p, _ := strings.Cut(d, " ")
		args = append(args, "open:"+p)
		want = append(want, "blocked device."+sf+" open "+p+" ENOENT")
	}
	r := l.boxed(runOpts{}, "reach", args...)
	if n := strings.Count(r.out, ": ENOENT\n"); n != len(args) {
		t.Errorf("in the box:\n%s", r.out)
	}
	if got := connections(r.ops); !slices.Equal(got, want) {
		t.Errorf("on record:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func init() {
	programs["opens"] = func() {
		fd, err := unix.Open(os.Args[1], unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			fmt.Println(err)
		} else {
			_, err = unix.Write(fd, []byte("x"))
			fmt.Printf("opened, write %s\n", unix.ErrnoName(err.(unix.Errno)))
		}
		fmt.Println("end")
	}
}

// The kernel's console stands in for devices that not every machine has: it is there, and
// of the kind that is given read-only.
func TestAGrantedDevice(t *testing.T) {
	const node = "/dev/tty0"
	if f, err := os.OpenFile(node, os.O_RDWR|0x100|0x800, 0); err != nil {
		t.Skipf("no virtual console that this user may open: %v", err)
	} else {
		f.Close()
	}
	l := newLab(t)
	grant := func(p *core.Policy) {
		if err := p.Set("device.screen", "allow"); err != nil {
			t.Fatal(err)
		}
	}
	r := l.boxed(runOpts{policy: grant}, "opens", node)
	if r.out != "opened, write EBADF\nend\n" {
		t.Errorf("in the box: %q", r.out)
	}
	if got := connections(r.ops); !slices.Equal(got, []string{"allowed device.screen open " + node}) {
		t.Errorf("on record: %q", got)
	}
}

func TestADeviceIsTakenBack(t *testing.T) {
	l := newLab(t)
	if f, err := os.Open("/dev/tty0"); err != nil {
		t.Skipf("no virtual console that this user may open: %v", err)
	} else {
		f.Close()
	}
	asked := false
	r := l.run(runOpts{policy: func(p *core.Policy) {
		if err := p.Set("device.screen", "allow"); err != nil {
			t.Fatal(err)
		}
	}, live: func(op *core.Operation) {
		if op.Surface == core.DeviceScreen && op.Verdict == core.Allowed && !asked {
			asked = true
			if n, err := Ask(l.boxDir("b"), Order{Do: "set", Surface: "device.screen", Verdict: "block"}); n != 1 || err != nil {
				t.Errorf("%d %v", n, err)
			}
		}
	}}, "/usr/bin/python3", "-c", `import os
n = 0
try:
    while True: os.close(os.open("/dev/tty0", os.O_RDONLY | os.O_NONBLOCK)); n += 1
except OSError as e: print(n > 0, e.strerror)`)
	if r.out != "True No such file or directory\n" {
		t.Errorf("%q %s", r.out, r.stderr)
	}
}
