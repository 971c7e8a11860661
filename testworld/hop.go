package testworld

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"github.com/sandglass/sandglass/driver/sys"
)

// hop carries packets between the machine's far0 and the Internet's, and loses or delays
// them. Which it loses is the same in every run.
type hop struct{ how atomic.Pointer[Hop] }

// makeHop makes it, if the machine could open its side.
func (s *internetState) makeHop() error {
	machine := os.NewFile(tunFD, "machine's tun")
	if _, err := machine.Stat(); err != nil {
		return nil
	}
	fd, err := sys.OpenTun("far0")
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	world := os.NewFile(uintptr(fd), "Internet's tun")
	if err := ip("addr add "+Far.String()+"/32 dev lo", "addr add "+Far6.String()+"/128 dev lo nodad", "link set far0 up mtu 1500",
		"route add 192.168.99.2 dev far0 src "+Far.String(), "route add 2001:db8:99::2 dev far0 src "+Far6.String()); err != nil {
		return err
	}
	s.hop = &hop{}
	s.hop.how.Store(&Hop{})
	go s.hop.carry(machine, world, 1)
	go s.hop.carry(world, machine, 2)
	return nil
}

// carry takes packets from one end to the other, each behind the header by which the
// kernel leaves its checksum out ([sys.OpenTun]): it goes along.
func (h *hop) carry(from, to *os.File, seed uint64) {
	type late struct {
		packet []byte
		due    time.Time
	}
	queue := make(chan late, 4096) // what does not fit is lost, as on any router
	go func() {
		for l := range queue {
			if d := time.Until(l.due); d > 0 {
				<-time.After(d)
			}
			to.Write(l.packet)
		}
	}()
	defer close(queue)
	random := rand.New(rand.NewPCG(seed, seed))
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		how := h.how.Load()
		if random.IntN(1000) < how.PerMille {
			continue
		}
		select {
		case queue <- late{append([]byte(nil), buf[:n]...), time.Now().Add(how.Delay)}:
		default:
		}
	}
}
