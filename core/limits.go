package core

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Limits bound what a box may use. 0 is no limit.
type Limits struct {
	Processes int64         // processes and threads at a time, of a session
	Memory    int64         // bytes of memory of a session, shared memory included
	CPUs      float64       // processors; a fraction takes a control group
	CPUTime   time.Duration // of a session, all processes together
	OpenFiles int64         // descriptors of a process
	FileSize  int64         // bytes of any one file that is written
	BoxSize   int64         // bytes of all that the box has changed
	WallTime  time.Duration // from the session's begin to its end
	NetRate   int64         // bytes a second of its network, each way
	NetBytes  int64         // bytes of its network, both ways together
	// Versions are bytes of old contents of the box's files that are kept, of all its sessions
	// together; [NoVersions]: none are. VersionFile is of one file: a larger one is not kept.
	Versions, VersionFile int64
}

// NoVersions in place of [Limits.Versions]: no old contents are kept, and nothing of a
// box's past can be brought back but its snapshots.
const NoVersions = -1

// limitNames are the names in files and on the command line, in the order in which
// they are listed.
var limitNames = []string{"processes", "memory", "cpus", "cpu-time", "open-files", "file-size", "box-size", "wall-time", "net-rate", "net-bytes", "versions", "version-file"}

// LimitNames lists the names of the limits.
func LimitNames() []string { return append([]string(nil), limitNames...) }

// Set sets the limit of that name from text: a number ("100"), a size ("512MiB", "2G",
// powers of 1024) or a duration ("10m"). "none" is no limit.
func (l *Limits) Set(name, text string) error {
	fail := func(err error, hint string) error {
		return Hint(fmt.Errorf("limit %s: %q: %w", name, Shorten(text, 80), err), hint)
	}
	none := text == "none"
	var err error
	switch name {
	case "processes":
		err = setCount(&l.Processes, text, none)
	case "open-files":
		err = setCount(&l.OpenFiles, text, none)
	case "memory":
		err = setSize(&l.Memory, text, none)
	case "file-size":
		err = setSize(&l.FileSize, text, none)
	case "box-size":
		err = setSize(&l.BoxSize, text, none)
	case "net-rate":
		err = setSize(&l.NetRate, text, none)
	case "net-bytes":
		err = setSize(&l.NetBytes, text, none)
	case "versions":
		if text == "off" {
			l.Versions = NoVersions
			return nil
		}
		err = setSize(&l.Versions, text, none)
	case "version-file":
		err = setSize(&l.VersionFile, text, none)
	case "cpu-time":
		err = setDuration(&l.CPUTime, text, none)
	case "wall-time":
		err = setDuration(&l.WallTime, text, none)
	case "cpus":
		if none {
			l.CPUs = 0
			return nil
		}
		n, perr := strconv.ParseFloat(text, 64)
		if perr != nil || !(n >= 0.01 && n <= 4096) {
			err = errLimit("not a number from 0.01 to 4096")
		} else {
			l.CPUs = n
		}
	default:
		return Hint(fmt.Errorf("unknown limit %q", Shorten(name, 80)), "limits: "+strings.Join(limitNames, ", "))
	}
	if err != nil {
		return fail(err, "a number, a size as 512MiB, a duration as 10m, or none")
	}
	return nil
}

type errLimit string

func (e errLimit) Error() string { return string(e) }

func setCount(to *int64, text string, none bool) error {
	if none {
		*to = 0
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || n > math.MaxInt32 {
		return errLimit("not a whole number from 1 to 2147483647")
	}
	*to = n
	return nil
}

func setDuration(to *time.Duration, text string, none bool) error {
	if none {
		*to = 0
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second {
		return errLimit("not a duration of a second or more")
	}
	*to = d
	return nil
}

// ParseSize reads a size: a number of bytes, or of a unit of 1024: "512MiB", "2G".
func ParseSize(text string) (n int64, err error) {
	err = setSize(&n, text, false)
	return n, err
}

var sizeUnits = map[string]int64{"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "mib": 1 << 20,
	"g": 1 << 30, "gb": 1 << 30, "gib": 1 << 30, "t": 1 << 40, "tb": 1 << 40, "tib": 1 << 40}

func setSize(to *int64, text string, none bool) error {
	if none {
		*to = 0
		return nil
	}
	digits := strings.TrimRightFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	unit, ok := sizeUnits[strings.ToLower(strings.TrimSpace(text[len(digits):]))]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !ok || !(n > 0) || n*float64(unit) >= 1<<62 || n*float64(unit) < 1 {
		return errLimit("not a size")
	}
	*to = int64(n * float64(unit))
	return nil
}

// texts lists the limits that are set as name=value.
func (l Limits) texts() (out []string) {
	for _, x := range []struct {
		name string
		set  bool
		text string
	}{
		{"processes", l.Processes != 0 && l.Processes != defaultProcesses, strconv.FormatInt(l.Processes, 10)},
		{"memory", l.Memory != 0, strconv.FormatInt(l.Memory, 10)},
		{"cpus", l.CPUs != 0, strconv.FormatFloat(l.CPUs, 'g', -1, 64)},
		{"cpu-time", l.CPUTime != 0, l.CPUTime.String()},
		{"open-files", l.OpenFiles != 0, strconv.FormatInt(l.OpenFiles, 10)},
		{"file-size", l.FileSize != 0, strconv.FormatInt(l.FileSize, 10)},
		{"box-size", l.BoxSize != 0, strconv.FormatInt(l.BoxSize, 10)},
		{"wall-time", l.WallTime != 0, l.WallTime.String()},
		{"net-rate", l.NetRate != 0, strconv.FormatInt(l.NetRate, 10)},
		{"net-bytes", l.NetBytes != 0, strconv.FormatInt(l.NetBytes, 10)},
		{"versions", l.Versions != defaultVersions, versionsText(l.Versions)},
		{"version-file", l.VersionFile != defaultVersionFile, versionsText(l.VersionFile)},
	} {
		if x.set {
			out = append(out, x.name+"="+x.text)
		}
	}
	return out
}

// defaultProcesses is the bound of the default policy: more than a build needs, fewer
// than would stop the machine.
const defaultProcesses = 4096

// defaultVersions and defaultVersionFile are those of the default policy: enough for what
// people write, and no second copy of every disk image.
const (
	defaultVersions    = 2 << 30
	defaultVersionFile = 256 << 20
)

func versionsText(n int64) string {
	switch n {
	case NoVersions:
		return "off"
	case 0:
		return "none"
	}
	return strconv.FormatInt(n, 10)
}
