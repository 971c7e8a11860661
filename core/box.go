package core

import (
	"errors"
	"fmt"
	"time"
)

// Box is a place that programs run in: a policy, an upper layer and the sessions
// that ran in it.
type Box struct {
	Name    string    `json:"name"`
	Policy  string    `json:"policy"`
	Created time.Time `json:"created"`
}

// Session is one run of a command in a box, by one supervisor.
type Session struct {
	ID      SessionID
	Box     string
	Host    string
	Command []string
	Policy  string
	Observe Observe
	Net     Net
	Start   time.Time
	End     time.Time // zero while it runs
	Exit    int       // exit code as `run` returned it; meaningful when End is set
}

// Observe says which operations are intercepted to be recorded. What is refused is
// recorded always.
type Observe string

// The settings of observe. Their zero value is [ObserveFull].
const (
	ObserveFull    Observe = "full"    // everything
	ObserveChanges Observe = "changes" // no plain reads
	ObserveLean    Observe = "lean"    // exec and process life; the upper layer is the record of changes
)

// ParseObserve reads a setting of observe; "" is [ObserveFull].
func ParseObserve(s string) (Observe, error) {
	switch o := Observe(s); o {
	case "":
		return ObserveFull, nil
	case ObserveFull, ObserveChanges, ObserveLean:
		return o, nil
	}
	return "", Hint(fmt.Errorf("unknown observe setting %q", Shorten(s, 80)), "one of full, changes, lean")
}

// Net is the network that a box gets.
type Net string

// The networks. [NetOwn] is the default.
const (
	NetNone Net = "none" // an empty network namespace, loopback up
	NetOwn  Net = "own"  // a network namespace whose only way out is the supervisor's own TCP/IP stack
	NetHost Net = "host" // the caller's network namespace
)

// ParseNet reads a network; "" is [NetOwn].
func ParseNet(s string) (Net, error) {
	switch n := Net(s); n {
	case "":
		return NetOwn, nil
	case NetNone, NetOwn, NetHost:
		return n, nil
	case "offline":
		return NetNone, nil
	}
	return "", Hint(fmt.Errorf("unknown network %q", Shorten(s, 80)), "one of own, none (or offline), host")
}

// MaxBoxName is the longest name of a box, in bytes.
const MaxBoxName = 64

// CheckBoxName refuses what could not be a box's name: it becomes a folder, a
// subject token and a part of a URL, so it is 1 to [MaxBoxName] of a-z, A-Z, 0-9,
// '-', '_', '.', beginning with a letter or digit.
func CheckBoxName(s string) error {
	const hint = "a box name has 1 to 64 letters, digits, '-', '_' or '.', and begins with a letter or digit"
	if len(s) == 0 || len(s) > MaxBoxName {
		return Hint(fmt.Errorf("bad box name %q: %d characters", Shorten(s, 40), len(s)), hint)
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if alnum || i > 0 && (c == '-' || c == '_' || c == '.') {
			continue
		}
		return Hint(fmt.Errorf("bad box name %q: %q is not allowed here", s, rune(c)), hint)
	}
	return nil
}

// Shorten cuts s to at most n bytes, with an ellipsis in the place of what was cut.
func Shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:max(0, n-3)] + "..."
}

// HintError is an error with advice for the person who reads it.
type HintError struct {
	Err   error
	Hints []string // what to do, a line each
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// Hint adds advice to err; nil stays nil.
func Hint(err error, hints ...string) error {
	if err == nil {
		return nil
	}
	return &HintError{err, hints}
}

// Hints returns all advice in err's chain, outermost first.
func Hints(err error) (hints []string) {
	var h *HintError
	for errors.As(err, &h) {
		hints = append(hints, h.Hints...)
		err = h.Err
	}
	return hints
}

// ErrNotFound is wrapped by errors about something that does not exist.
var ErrNotFound = errors.New("not found")
