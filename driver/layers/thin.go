package layers

import (
	"container/heap"
	"errors"
	"io/fs"
	"os"
	"sort"
	"sync/atomic"
	"syscall"

	"github.com/sandglass/sandglass/driver/sys"
)

// thin makes room for need more bytes of kept contents, and says whether there is. Of the
// path that takes most, old versions between its first and its last go first. Only when
// there are none left do first versions go, the largest first, and none for one that is
// as large: what a file was before a program first touched it is what people want back,
// and a program that fills the room with files of its own does not drive it out.
func (h *History) thin(need int64) bool {
	h.thinning.Lock()
	defer h.thinning.Unlock()
	h.mu.Lock()
	closed := h.fds == nil
	h.mu.Unlock()
	limit := h.limits.Versions
	if closed || need > limit {
		return false
	}
	held := func() int64 { return int64(atomic.LoadUint64(&h.size[0])) }
	if held()+need <= limit { // another did it
		return true
	}
	lock, err := os.OpenFile(h.b.At("history", "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return false
	}
	defer lock.Close()
	if sys.Flock(lock, true, true) != nil {
		return false
	}
	rs, _, _, err := h.b.records()
	if err != nil {
		return false
	}
	safe, err := h.b.snapshotObjects()
	if err != nil {
		return false
	}
	u := usage(rs)
	live := map[objectID]bool{}
	for id := range safe {
		live[id] = true
	}
	for id := range u.objects {
		live[id] = true
	}
	if _, err := h.store.sweep(live); err != nil {
		return false
	}
	var sum int64
	h.store.each(func(id objectID, fi fs.FileInfo) error {
		if !safe[id] {
			sum += fi.Size()
		}
		if o := u.objects[id]; o != nil {
			o.size, o.there = fi.Size(), true
		}
		return nil
	})
	drop := func(id objectID) {
		if o := u.objects[id]; o.there && !safe[id] {
			if err := os.Remove(h.store.path(id)); err == nil || errors.Is(err, fs.ErrNotExist) {
				o.there = false
				sum -= o.size
			}
		}
	}
	u.between(safe, func(id objectID) bool {
		drop(id)
		return sum+need > limit-limit/4
	}, sum+need > limit-limit/4)
	if sum+need > limit {
		for _, id := range u.firsts(safe, need) {
			if drop(id); sum+need <= limit {
				break
			}
		}
	}
	atomic.StoreUint64(&h.size[0], uint64(max(sum, 0)))
	h.mu.Lock()
	clear(h.last)
	h.mu.Unlock()
	return sum+need <= limit
}

// used says what the records refer to.
type used struct {
	objects map[objectID]*usedObject
	paths   map[string]*usedPath
}

type usedObject struct {
	size  int64
	there bool
	first bool // of some path, the first version
}

type usedPath struct {
	versions []objectID // oldest first
	bytes    int64
	next     int // of versions: the first that may go
}

func usage(rs []*record) *used {
	u := &used{objects: map[objectID]*usedObject{}, paths: map[string]*usedPath{}}
	add := func(p string, e *entry) {
		if !e.kept {
			return
		}
		x := u.paths[p]
		if x == nil {
			x = &usedPath{}
			u.paths[p] = x
		}
		o := u.objects[e.hash]
		if o == nil {
			o = &usedObject{}
			u.objects[e.hash] = o
		}
		if len(x.versions) == 0 {
			o.first = true
		}
		if n := len(x.versions); n == 0 || x.versions[n-1] != e.hash {
			x.versions = append(x.versions, e.hash)
		}
	}
	for _, r := range rs {
		add(r.path, &r.was)
		if r.kind == recRename {
			add(r.path2, &r.was2)
		}
	}
	return u
}

// between calls drop with the versions that are no path's first, of the path with the most
// bytes each time, until it returns false.
func (u *used) between(safe map[objectID]bool, drop func(objectID) bool, more bool) {
	var q byBytes
	for _, p := range u.paths {
		seen := map[objectID]bool{}
		for _, id := range p.versions {
			if o := u.objects[id]; o.there && !seen[id] {
				seen[id] = true
				p.bytes += o.size
			}
		}
		q = append(q, p)
	}
	heap.Init(&q)
	for more && len(q) > 0 {
		p := q[0]
		for p.next < len(p.versions) {
			if o := u.objects[p.versions[p.next]]; o.there && !o.first && !safe[p.versions[p.next]] {
				break
			}
			p.next++
		}
		if p.next == len(p.versions) {
			heap.Pop(&q)
			continue
		}
		id := p.versions[p.next]
		p.next++
		p.bytes -= u.objects[id].size
		heap.Fix(&q, 0)
		more = drop(id)
	}
}

// firsts lists the first versions that are larger than need, the largest first.
func (u *used) firsts(safe map[objectID]bool, need int64) (out []objectID) {
	for id, o := range u.objects {
		if o.there && o.first && !safe[id] && o.size > need {
			out = append(out, id)
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if a, b := u.objects[out[i]].size, u.objects[out[j]].size; a != b {
			return a > b
		}
		return string(out[i][:]) < string(out[j][:])
	})
	return out
}

type byBytes []*usedPath

func (q byBytes) Len() int           { return len(q) }
func (q byBytes) Less(i, j int) bool { return q[i].bytes > q[j].bytes }
func (q byBytes) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *byBytes) Push(x any)        { *q = append(*q, x.(*usedPath)) }
func (q *byBytes) Pop() any {
	n := len(*q) - 1
	x := (*q)[n]
	*q = (*q)[:n]
	return x
}
