package network

import (
	"container/list"
	"fmt"
	"hash/maphash"
	"math"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
)

// tunnels finds questions that carry data: the names below one domain tell its owner what
// they hold, whoever is asked. Iodine and dnscat2 send hundreds of bytes a second like that,
// and a loop of a few lines of shell sends a key in a minute.
//
// What gives them away is that new names do not end, and that they do not look like names.
// Counted are, for each domain that somebody can register, the names below it that were not
// asked for within the hour, and the bytes of those of their labels that look encoded; over
// a minute, and over an hour for those that take their time. Programs that ask much ask the
// same again, or for names that people gave.
type tunnels struct {
	mu       sync.Mutex
	seed     maphash.Seed
	domains  map[string]*list.Element // of *domain
	order    *list.List               // the one asked longest ago first
	memories int                      // remembered in all domains
}

const (
	maxDomains  = 1024
	maxMemory   = 2048    // hashes of a domain
	maxMemories = 1 << 18 // of all
	quiet       = time.Minute
	memoryLife  = time.Hour
)

// domain is what was asked below one name that can be registered.
type domain struct {
	name         string
	minute, hour window
	memory       map[uint64]time.Time // when it was first seen
	ring         []uint64             // the same, oldest at next once full
	next         int
	asked        time.Time // the last time
	alarmed      time.Time
}

// counts is what a window adds up.
type counts struct {
	questions int
	distinct  int // names not seen before
	bytes     int // of the labels not seen before
	encoded   int // of these, bytes that look encoded
	long      int // labels not seen before of longLabel bytes and more that are no words
	text      int // distinct names asked for with a type that answers at length
}

// add adds d to c, times times.
func (c *counts) add(d *counts, times int) {
	c.questions += times * d.questions
	c.distinct += times * d.distinct
	c.bytes += times * d.bytes
	c.encoded += times * d.encoded
	c.long += times * d.long
	c.text += times * d.text
}

// window adds up the last slots of a time.
type window struct {
	each  time.Duration
	slots []counts
	last  int64  // number of the slot that was counted in last
	sum   counts // of all slots
}

func newWindow(each time.Duration, n int) window { return window{each: each, slots: make([]counts, n)} }

func (w *window) add(now time.Time, c *counts) counts {
	at, n := now.UnixNano()/int64(w.each), int64(len(w.slots))
	if at < w.last { // the clock was set back
		at = w.last
	}
	for i := max(w.last+1, at-n+1); i <= at; i++ {
		w.sum.add(&w.slots[i%n], -1)
		w.slots[i%n] = counts{}
	}
	w.last = at
	w.slots[at%n].add(c, 1)
	w.sum.add(c, 1)
	return w.sum
}

// tunnelAlarm says below which domain questions carry data, and what it looks like.
type tunnelAlarm struct {
	domain    string
	questions int // within the window that raised it
	distinct  int
	bytes     int
	why       string
}

func newTunnels() *tunnels {
	return &tunnels{seed: maphash.MakeSeed(), domains: map[string]*list.Element{}, order: list.New()}
}

// saw counts a question for a name in small letters, and says when it shows a tunnel: of
// one domain once a minute at most. It never blocks. It is safe for concurrent use.
func (t *tunnels) saw(now time.Time, name, qtype string) (alarm tunnelAlarm, fires bool) {
	base, sub := registrable(name)
	if sub == "" {
		return alarm, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.domain(now, base)
	c := counts{questions: 1}
	if t.first(d, now, name) {
		c.distinct = 1
		switch qtype {
		case "TXT", "NULL", "KEY", "SIG", "HINFO":
			c.text = 1
		}
		rest, size := afterAddress(sub)
		if c.bytes = size; size > 0 {
			c.text = 0 // block lists are asked for the text of their reasons
		}
		for label := range strings.SplitSeq(rest, ".") {
			if label == "" || !t.first(d, now, label) {
				continue
			}
			c.bytes += len(label)
			c.encoded += encoded(label)
			if len(label) >= longLabel && entropy(label) >= longEntropy && !madeOfWords(label) {
				c.long++
			}
		}
	}
	minute, hour := d.minute.add(now, &c), d.hour.add(now, &c)
	d.asked = now
	why, of := minute.shows(), minute
	if why == "" {
		why, of = hour.showsSlowly(), hour
	}
	if why == "" || !d.alarmed.IsZero() && now.Sub(d.alarmed) < quiet && !now.Before(d.alarmed) {
		return alarm, false
	}
	d.alarmed = now
	return tunnelAlarm{base, of.questions, of.distinct, of.bytes, why}, true
}

// What no program does that asks for names which somebody gave, and every tunnel does that
// is worth its name. The table in the test is where these numbers come from.
const (
	minuteEncoded, minuteNames        = 1200, 12
	minuteTextEncoded, minuteTexts    = 500, 100
	minuteLong                        = 40
	minuteDistinct, minuteDistinctSum = 1000, 12 << 10
	hourEncoded, hourNames            = 4096, 48
	hourDistinct, hourDistinctSum     = 4000, 48 << 10
	longLabel, longEntropy            = 24, 3.0
)

func (c *counts) shows() string {
	switch {
	case c.encoded >= minuteEncoded && c.distinct >= minuteNames:
		return fmt.Sprintf("%d bytes that look encoded, in %d new names within a minute", c.encoded, c.distinct)
	case c.encoded >= minuteTextEncoded && c.distinct >= minuteNames && 2*c.text >= c.distinct:
		return fmt.Sprintf("%d bytes that look encoded, in %d new names within a minute, asked for text", c.encoded, c.distinct)
	case c.text >= minuteTexts:
		return fmt.Sprintf("the text of %d new names within a minute", c.text)
	case c.long >= minuteLong:
		return fmt.Sprintf("%d new labels of %d bytes and more within a minute", c.long, longLabel)
	case c.distinct >= minuteDistinct && c.bytes >= minuteDistinctSum:
		return fmt.Sprintf("%d new names within a minute", c.distinct)
	}
	return ""
}

func (c *counts) showsSlowly() string {
	switch {
	case c.encoded >= hourEncoded && c.distinct >= hourNames:
		return fmt.Sprintf("%d bytes that look encoded, in %d new names within an hour", c.encoded, c.distinct)
	case c.distinct >= hourDistinct && c.bytes >= hourDistinctSum:
		return fmt.Sprintf("%d new names within an hour", c.distinct)
	}
	return ""
}

// domain returns the state of a domain, which may be new.
func (t *tunnels) domain(now time.Time, name string) *domain {
	if e := t.domains[name]; e != nil {
		t.order.MoveToBack(e)
		return e.Value.(*domain)
	}
	for t.order.Len() >= maxDomains {
		t.evict(now, nil)
	}
	d := &domain{name: name, minute: newWindow(10*time.Second, 6), hour: newWindow(time.Minute, 60), memory: map[uint64]time.Time{}}
	t.domains[name] = t.order.PushBack(d)
	return d
}

// evict forgets one domain: of those not asked for longest the one that carried least, so
// that no flood of other questions makes a tunnel be forgotten.
func (t *tunnels) evict(now time.Time, but *domain) {
	const among = 16
	var least *list.Element
	carried := math.MaxInt
	e := t.order.Front()
	for i := 0; i < among && e != nil; i, e = i+1, e.Next() {
		d := e.Value.(*domain)
		bytes := d.hour.sum.bytes
		if now.Sub(d.asked) > memoryLife {
			bytes = 0
		}
		if d != but && bytes < carried {
			least, carried = e, bytes
		}
	}
	if least == nil {
		return
	}
	d := t.order.Remove(least).(*domain)
	t.memories -= len(d.memory)
	delete(t.domains, d.name)
}

// first says whether s is new to d within the hour, and remembers it.
func (t *tunnels) first(d *domain, now time.Time, s string) bool {
	h := maphash.String(t.seed, s)
	if at, ok := d.memory[h]; ok {
		if now.Sub(at) < memoryLife {
			return false
		}
		d.memory[h] = now
		return true
	}
	if len(d.ring) < maxMemory {
		d.ring = append(d.ring, h)
		t.memories++
	} else {
		delete(d.memory, d.ring[d.next])
		d.ring[d.next] = h
		d.next = (d.next + 1) % maxMemory
	}
	d.memory[h] = now
	for t.memories > maxMemories {
		t.evict(now, d)
	}
	return true
}

// registrable splits a name into the part that somebody can register and what is below it.
// A name that stands for an address is its network's: a /24, a /48.
func registrable(name string) (base, sub string) {
	if a, ok := reversed(name); ok {
		if a.Is6() {
			size := 2*12 + len("ip6.arpa")
			return name[len(name)-size:], strings.ReplaceAll(name[:len(name)-size-1], ".", "")
		}
		_, network, _ := strings.Cut(name, ".")
		return network, name[:len(name)-len(network)-1]
	}
	base, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil {
		return name, ""
	}
	return base, strings.TrimSuffix(name[:len(name)-len(base)], ".")
}

// afterAddress cuts an address from the front of what is asked of a block list (RFC 5782
// 2.1: its bytes or nibbles, the last first), and says how many bytes it was.
func afterAddress(sub string) (rest string, size int) {
	for _, form := range []struct {
		labels, most, base, size int
	}{{32, 1, 16, 16}, {4, 3, 10, 4}} {
		rest, ok := sub, true
		for i := 0; i < form.labels && ok; i++ {
			var label string
			label, rest, _ = strings.Cut(rest, ".")
			ok = number(label, form.most, form.base)
		}
		if ok {
			return rest, form.size
		}
	}
	return sub, 0
}

func number(s string, most, base int) bool {
	n := 0
	for i := range len(s) {
		d := strings.IndexByte("0123456789abcdef"[:base], s[i])
		if d < 0 {
			return false
		}
		n = n*base + d
	}
	return len(s) > 0 && len(s) <= most && n <= 255
}

// encoded returns how many bytes of a label are of parts that look like data in base 16, 32,
// 36 or 64 rather than like words, numbers and what people and machines call things.
func encoded(label string) (n int) {
	for part := range strings.FieldsFuncSeq(label, func(r rune) bool { return r == '-' || r == '_' }) {
		if looksEncoded(part) {
			n += len(part)
		}
	}
	return n
}

// madeOfWords says whether a label is made of parts with hyphens between them, none of them long.
func madeOfWords(label string) bool {
	for part := range strings.FieldsFuncSeq(label, func(r rune) bool { return r == '-' || r == '_' }) {
		if len(part) > 16 || looksEncoded(part) {
			return false
		}
	}
	return true
}

func looksEncoded(s string) bool {
	if len(s) < 8 {
		return false
	}
	digits, vowels, turns, run, longest := 0, 0, 0, 0, 0
	hex := true
	for i := range len(s) {
		c := s[i]
		digit := c >= '0' && c <= '9'
		if i > 0 && digit != (s[i-1] >= '0' && s[i-1] <= '9') {
			turns++
		}
		hex = hex && (digit || c >= 'a' && c <= 'f')
		switch {
		case digit:
			digits++
			run = 0
		case strings.IndexByte("aeiouy", c) >= 0:
			vowels++
			run = 0
		default:
			run++
			longest = max(longest, run)
		}
	}
	letters := len(s) - digits
	switch {
	case letters == 0:
		return len(s) >= 16 // shorter ones are numbers and times
	case hex && digits > 0 && turns >= 2:
		return true
	case digits > 0 && turns >= 3 && 5*turns >= len(s):
		return true
	case len(s) >= 12 && 4*vowels < letters:
		return true
	}
	return longest >= 6
}

// entropy is Shannon's, in bits for each character.
func entropy(s string) (bits float64) {
	var n [256]int
	for i := range len(s) {
		n[s[i]]++
	}
	for _, k := range n {
		if k > 0 {
			p := float64(k) / float64(len(s))
			bits -= p * math.Log2(p)
		}
	}
	return bits
}
