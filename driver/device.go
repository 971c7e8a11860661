package driver

import (
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Devices. A box's /dev has none but the harmless ones: that is the wall, with mknod(2)
// refused and every overlay mounted nodev. What is asked for and absent is refused here,
// so that it is on record by what it is; what a policy grants is opened by the supervisor
// and given to the box as a descriptor.

// knownDevices says what the nodes below /dev are, by globs of their names; the first one
// that matches counts.
var knownDevices = []struct {
	surface core.Surface
	globs   string
}{
	{core.DeviceDisk, "sd* hd* vd* xvd* nvme* mmcblk* loop* loop-control dm-* md* md/* mapper mapper/* disk disk/* disk/*/* sr* cdrom* dvd* zram* nbd* ram[0-9]* sg* bsg/* st[0-9]* nst[0-9]* mtd* ubi* pmem* bcache* btrfs-control raw/* block/*"},
	{core.DeviceMemory, "mem kmem port kmsg cpu/*/msr cpu/*/cpuid cpu/* nvram mcelog crash oldmem"},
	{core.DeviceKeyboard, "input input/* input/*/* psaux mice mouse* js[0-9]*"},
	{core.DeviceScreen, "fb[0-9]* vcs* vcsa* vcsu* tty[0-9]* console vga_arbiter"},
	{core.DeviceCamera, "video* v4l v4l/* v4l/*/* v4l-subdev* media[0-9]* dvb dvb/* dvb/*/* vbi* radio*"},
	{core.DeviceSound, "snd snd/* snd/*/* dsp* audio* mixer* midi* sequencer*"},
	{core.DeviceGPU, "dri dri/* dri/*/* nvidia* nvidia-caps/* kfd accel/* udmabuf dma_heap/* mali*"},
	{core.DeviceUSB, "bus/usb bus/usb/* bus/usb/*/* usbmon* usb/*"},
	{core.DeviceSerial, "ttyS* ttyUSB* ttyACM* ttyAMA* serial serial/* serial/*/* lp[0-9]* parport* i2c-* spidev* gpiochip*"},
	{core.DeviceTPM, "tpm[0-9]* tpmrm[0-9]* hwrng sgx* sev"},
	{core.DeviceNet, "net net/* tap* vhost-net vhost-vsock vsock ppp wwan*"},
	{core.DeviceVirtual, "kvm vfio vfio/* vboxdrv* vmmon* xen/* vmci"},
	{core.DeviceFuse, "fuse cuse"},
}

// deviceSurface says which surface a path below /dev is on; not ok for what is no device:
// the box's terminals, shared memory and descriptors.
func deviceSurface(p string) (sf core.Surface, ok bool) {
	name, ok := strings.CutPrefix(p, "/dev/")
	if !ok {
		return "", false
	}
	switch first, _, _ := strings.Cut(name, "/"); first {
	case "pts", "shm", "mqueue", "fd", "stdin", "stdout", "stderr", "ptmx", "tty", "null", "zero", "full", "random", "urandom", "log":
		return "", false
	}
	for _, k := range knownDevices {
		for g := range strings.FieldsSeq(k.globs) {
			if ok, err := path.Match(g, name); ok && err == nil {
				return k.surface, true
			}
		}
	}
	return core.DeviceOther, true
}

// readOnlyDevices are those of which reading is all that a grant is for: who may look at
// the keys and the screen need not be able to press and paint.
var readOnlyDevices = map[core.Surface]bool{core.DeviceKeyboard: true, core.DeviceScreen: true}

// device judges the opening of a device that the box does not have; not ok when p is
// something else.
func (s *supervisor) device(p place, flags uint32) (answer, bool) {
	if p.object || flags&(oCreat|oTmpfile) != 0 {
		return answer{}, false
	}
	sf, ok := deviceSurface(p.path)
	if !ok || harmless[p.path] {
		return answer{}, false
	}
	if _, _, err := sys.Lstat(s.paths.root, strings.TrimPrefix(p.path, "/")); err == nil {
		return answer{}, false // something of the box's own
	}
	d := core.Detail{"flags": openFlags(flags)}
	dec := s.policy.Load().Decide(sf)
	if dec.Verdict != core.Allowed {
		return s.refuse(sf, core.ActOpen, p.path, dec.Rule, syscall.ENOENT, d), true
	}
	op := &core.Operation{Surface: sf, Action: core.ActOpen, Target: p.path, Verdict: core.Allowed, Rule: dec.Rule, Detail: d}
	mode := int(flags & oAccmode)
	if readOnlyDevices[sf] {
		mode, d["given"] = syscall.O_RDONLY, "read-only"
	}
	return answer{ops: [2]*core.Operation{op}, do: func() performed {
		// A name below by-id or by-path is a link: where it leads must be of the same kind.
		real, err := filepath.EvalSymlinks(p.path)
		if err != nil {
			return performed{errno: syscall.ENOENT}
		}
		if to, ok := deviceSurface(real); !ok || to != sf {
			return performed{errno: syscall.EACCES}
		}
		fd, err := sys.OpenDevice(real, mode, flags&syscall.O_NONBLOCK != 0)
		if err != nil {
			if e, ok := err.(syscall.Errno); ok {
				return performed{errno: e}
			}
			return performed{errno: syscall.EIO}
		}
		return performed{inject: true, fd: fd, cloexec: flags&syscall.O_CLOEXEC != 0}
	}}, true
}

// forgingIoctls put input into a terminal as if it had been typed there, or take the
// console's selection (ioctl_tty(2), ioctl_console(2)). The kernel looks at 32 bits of a
// request's number, so high ones hide nothing.
var forgingIoctls = []uint32{tiocsti, tioclinux}

// interfaceIoctls change an interface, an address or a route (netdevice(7), ioctl_list of
// include/uapi/linux/sockios.h). A box has no capability for any of them: they are trapped
// for the log.
var interfaceIoctls = map[uint32]string{0x890b: "SIOCADDRT", 0x890c: "SIOCDELRT", 0x8914: "SIOCSIFFLAGS", 0x8916: "SIOCSIFADDR",
	0x8918: "SIOCSIFDSTADDR", 0x891a: "SIOCSIFBRDADDR", 0x891c: "SIOCSIFNETMASK", 0x891e: "SIOCSIFMETRIC", 0x8922: "SIOCSIFMTU",
	0x8923: "SIOCSIFNAME", 0x8924: "SIOCSIFHWADDR", 0x8936: "SIOCDIFADDR", 0x8943: "SIOCSIFTXQLEN", 0x8953: "SIOCDARP", 0x8955: "SIOCSARP",
	0x89a0: "SIOCBRADDBR", 0x89a1: "SIOCBRDELBR"}

// trappedIoctls are the requests of both.
var trappedIoctls = func() []uint32 {
	return append(slices.Sorted(maps.Keys(interfaceIoctls)), forgingIoctls...)
}()

const (
	tiocsti   = 0x5412 // asm-generic/ioctls.h
	tioclinux = 0x541c
)

func (s *supervisor) ioctl(fd int32, request uint32) answer {
	if name, ok := interfaceIoctls[request]; ok {
		return s.refuse(core.IPCSocket, core.ActConfigure, name, "no capabilities", syscall.EPERM, core.Detail{"call": "ioctl"})
	}
	name := "TIOCSTI"
	if request == tioclinux {
		name = "TIOCLINUX"
	}
	return s.refuse(core.DeviceTTY, core.ActIoctl, name, "filter", syscall.EPERM, core.Detail{"path": s.fdPath(fd).path})
}
