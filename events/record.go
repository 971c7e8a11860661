package events

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sandglass/sandglass/core"
)

// A spool is a folder of segments, 1.seg, 2.seg ..., that are only ever appended to:
//
//	segment = "SGSPOOL1" marker[8] record*
//	record  = marker[8] length[4] crc[4] kind[1] time[8] count[2] payload[length]
//
// Numbers are little-endian. crc is CRC-32C over all but itself. time is that
// of a batch's last operation, in nanoseconds since 1970, and count how many it has. marker is
// drawn at random for each spool: whoever looks for the next whole record behind a damaged
// one looks for it, and a box, whose bytes fill the payloads, does not know it and cannot
// forge a record. A record is written by one write(2); what a crash leaves of one at the
// end is told from damage by there being no whole record behind it.
const (
	segMagic   = "SGSPOOL1"
	segHead    = 16
	recordHead = 27
	maxPayload = MaxBatchSize
)

// kind tells what a record of the spool holds.
type kind byte

const (
	kindOps  kind = 1 // payload: a batch
	kindLife kind = 2 // payload: a life
)

type marker [8]byte

func newMarker() (m marker) {
	rand.Read(m[:]) // never fails, says its documentation
	return m
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is a record of the spool as its readers see it.
type record struct {
	kind  kind
	body  []byte
	time  time.Time
	addr  address
	first core.Seq // kindOps
	count int      // kindOps
	life  *Life    // kindLife
	at    position // where it begins
	end   position // where it ends
}

// position is a place in a spool.
type position struct{ seg, off int64 }

func (p position) before(q position) bool {
	return p.seg < q.seg || p.seg == q.seg && p.off < q.off
}

func (r *record) stream() string {
	if r.kind == kindLife {
		return StreamCtl
	}
	return StreamOps
}

// id returns the id of the record's event, unique for ever.
func (r *record) id(session core.SessionID) string {
	if r.kind == kindLife {
		return string(session) + ":" + string(r.life.Kind)
	}
	return string(session) + ":" + strconv.FormatUint(uint64(r.first), 10)
}

// rank orders the records of one subject: [Log] writes them in ascending order, so all up
// to the last one in a stream are in that stream. The id of a record holds it.
func (r *record) rank() uint64 {
	if r.kind == kindLife {
		return lifeRank(r.life.Kind)
	}
	return uint64(r.first)
}

func lifeRank(k LifeKind) uint64 {
	if k == SessionEnd {
		return 2
	}
	return 1
}

// rankOfID is rank for a record of which there is only the id; 0 when it is none of session's.
func rankOfID(id string, session core.SessionID, stream string) uint64 {
	rest, ok := strings.CutPrefix(id, string(session)+":")
	if !ok || rest == "" {
		return 0
	}
	if stream == StreamCtl {
		return lifeRank(LifeKind(rest))
	}
	n, err := strconv.ParseUint(rest, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// sealRecord fills in the head of the record that begins at buf[0], whose payload is
// already behind it.
func sealRecord(buf []byte, m marker, k kind, time int64, count int) {
	copy(buf, m[:])
	binary.LittleEndian.PutUint32(buf[8:], uint32(len(buf)-recordHead))
	buf[16] = byte(k)
	binary.LittleEndian.PutUint64(buf[17:], uint64(time))
	binary.LittleEndian.PutUint16(buf[25:], uint16(count))
	crc := crc32.Update(crc32.Checksum(buf[:12], castagnoli), castagnoli, buf[16:])
	binary.LittleEndian.PutUint32(buf[12:], crc)
}

// Why a record cannot be read.
var (
	errShort   = errors.New("the file ends within it")
	errDamaged = errors.New("damaged")
)

// rawRecord is a record whose payload has not been looked into.
type rawRecord struct {
	kind    kind
	time    int64
	count   int
	payload []byte
}

// readRecord reads the record at off of a segment that ends at size, into buf when it is
// large enough. Errors wrap errShort or errDamaged, or are the file's.
func readRecord(f io.ReaderAt, off, size int64, m marker, buf []byte) (rawRecord, error) {
	var head [recordHead]byte
	if size-off < recordHead {
		return rawRecord{}, errShort
	}
	if _, err := f.ReadAt(head[:], off); err != nil {
		return rawRecord{}, err
	}
	n := int64(binary.LittleEndian.Uint32(head[8:]))
	switch {
	case marker(head[:8]) != m:
		return rawRecord{}, fmt.Errorf("%w: no marker", errDamaged)
	case n == 0 || n > maxPayload:
		return rawRecord{}, fmt.Errorf("%w: length %d", errDamaged, n)
	case size-off-recordHead < n:
		return rawRecord{}, errShort
	}
	if int64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	payload := buf[:n]
	if _, err := f.ReadAt(payload, off+recordHead); err != nil {
		return rawRecord{}, err
	}
	crc := crc32.Update(crc32.Update(crc32.Checksum(head[:12], castagnoli), castagnoli, head[16:]), castagnoli, payload)
	if crc != binary.LittleEndian.Uint32(head[12:]) {
		return rawRecord{}, fmt.Errorf("%w: checksum", errDamaged)
	}
	return rawRecord{kind(head[16]), int64(binary.LittleEndian.Uint64(head[17:])), int(binary.LittleEndian.Uint16(head[25:])), payload}, nil
}

// nextRecord returns the offset of the first whole record at or behind off, or size when
// there is none.
func nextRecord(f io.ReaderAt, off, size int64, m marker) (int64, error) {
	const window = 1 << 20
	buf := make([]byte, min(window, max(0, size-off)))
	body := make([]byte, maxPayload)
	for off < size {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if n < len(m) {
			return size, nil
		}
		chunk := buf[:n]
		for from := 0; ; {
			i := strings.Index(string(chunk[from:]), string(m[:]))
			if i < 0 {
				break
			}
			at := off + int64(from+i)
			if _, err := readRecord(f, at, size, m, body); err == nil {
				return at, nil
			}
			from += i + 1
		}
		off += int64(n - len(m) + 1)
	}
	return size, nil
}

// segName returns the name of the nth segment.
func segName(n int64) string { return strconv.FormatInt(n, 10) + ".seg" }

// segments lists the numbers of the segments in a spool's folder, ascending.
func segments(dir string) ([]int64, error) {
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var ns []int64
	for _, e := range es {
		s, ok := strings.CutSuffix(e.Name(), ".seg")
		if n, err := strconv.ParseInt(s, 10, 64); ok && err == nil && n > 0 && segName(n) == e.Name() {
			i := len(ns)
			ns = append(ns, n)
			for ; i > 0 && ns[i-1] > n; i-- {
				ns[i] = ns[i-1]
			}
			ns[i] = n
		}
	}
	return ns, nil
}
