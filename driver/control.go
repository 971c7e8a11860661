package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/layers"
	"github.com/sandglass/sandglass/driver/sys"
)

// Order is what another process of the same user may ask of a running session. It is
// asked over a socket in the box's folder, which no box can see; the folder's mode keeps
// other users out.
type Order struct {
	// Do is "freeze", "thaw", "kill", "set", "grant", "revoke", "rule", "unrule", "cut",
	// "asks" or "answer".
	Do string `json:"do"`
	// Surface and Verdict ("allow", "redirect", "block") are of "set".
	Surface string `json:"surface,omitempty"`
	Verdict string `json:"verdict,omitempty"`
	// Socket is of "grant" and "revoke", see [core.Policy.Connect].
	Socket string `json:"socket,omitempty"`
	// Rule is of "rule", which goes before those there are, and "unrule": see [core.ParseFlowRule].
	Rule string `json:"rule,omitempty"`
	// Flow is of "cut": its number, "" for all.
	Flow string `json:"flow,omitempty"`
	// Ask and Allow are of "answer".
	Ask   string `json:"ask,omitempty"`
	Allow bool   `json:"allow,omitempty"`
}

type outcome struct {
	Questions []Question `json:"questions,omitempty"`
	Error     string     `json:"error,omitempty"`
	Hints     []string   `json:"hints,omitempty"`
}

const (
	maxOrder      = 8 << 10
	maxOutcome    = 1 << 20
	orderPatience = 5 * time.Second
	maxOrders     = 8 // at a time
	acceptAgain   = 50 * time.Millisecond
)

// orders is the session's end of it.
type orders struct {
	l    *net.UnixListener
	path string
	over chan struct{} // closed at the session's end: who is slow is not waited for
	wg   sync.WaitGroup
}

// remote begins to take orders.
func (r *run) remote() (*orders, error) {
	dir, err := os.Open(r.b.At("run"))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name := string(r.o.Session.ID) + ".sock"
	os.Remove(filepath.Join(dir.Name(), name))
	// By way of a descriptor: the path itself may be longer than an address can be.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name})
	if err != nil {
		return nil, fmt.Errorf("listen for orders: %w", err)
	}
	l.SetUnlinkOnClose(false)
	o := &orders{l: l, path: filepath.Join(dir.Name(), name), over: make(chan struct{})}
	slots := make(chan struct{}, maxOrders)
	o.wg.Go(func() {
		for {
			slots <- struct{}{}
			c, err := l.Accept()
			if err != nil {
				<-slots
				select {
				case <-o.over:
					return
				case <-time.After(acceptAgain): // no descriptor is free: a box can have it so for a while
					continue
				}
			}
			o.wg.Go(func() {
				served := make(chan struct{})
				defer func() { close(served); c.Close(); <-slots }()
				go func() {
					select {
					case <-o.over:
						c.Close()
					case <-served:
					}
				}()
				c.SetDeadline(time.Now().Add(orderPatience))
				var ord Order
				err := json.NewDecoder(io.LimitReader(c, maxOrder)).Decode(&ord)
				if err == nil {
					err = r.obey(ord)
				}
				var out outcome
				if err != nil {
					out = outcome{Error: err.Error(), Hints: core.Hints(err)}
				} else if ord.Do == "asks" {
					out.Questions = r.questions()
				}
				json.NewEncoder(c).Encode(out) // whoever asked may be gone
			})
		}
	})
	return o, nil
}

func (o *orders) close() {
	close(o.over)
	o.l.Close()
	os.Remove(o.path)
	o.wg.Wait()
}

// Ask has every session that runs in the box of that folder carry out ord, and returns how
// many did.
func Ask(dir string, ord Order) (n int, err error) {
	refs, err := layers.Dir(dir).Running()
	if err != nil {
		return 0, err
	}
	for _, ref := range refs {
		if _, e := ask(dir, ref.ID, ord); e != nil {
			err = errors.Join(err, fmt.Errorf("session %s: %w", ref.ID, e))
			continue
		}
		n++
	}
	return n, err
}

func ask(dir string, id core.SessionID, ord Order) (out outcome, err error) {
	d, err := os.Open(layers.Dir(dir).At("run"))
	if err != nil {
		return out, err
	}
	defer d.Close()
	c, err := net.DialTimeout("unix", "/proc/self/fd/"+strconv.Itoa(int(d.Fd()))+"/"+string(id)+".sock", orderPatience)
	if err != nil {
		return out, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(orderPatience))
	if err := json.NewEncoder(c).Encode(ord); err != nil {
		return out, err
	}
	if err := json.NewDecoder(io.LimitReader(c, maxOutcome)).Decode(&out); err != nil {
		return out, err
	}
	if out.Error != "" {
		return out, core.Hint(errors.New(out.Error), out.Hints...)
	}
	return out, nil
}

// obey carries out an order.
func (r *run) obey(o Order) error {
	switch o.Do {
	case "freeze":
		return r.freeze()
	case "thaw":
		return r.thaw()
	case "kill":
		r.kill("it was asked for")
		return nil
	case "set", "grant", "revoke", "rule", "unrule":
		return r.change(o)
	case "cut":
		return r.cut(o.Flow)
	case "answer":
		return r.answer(o)
	case "asks":
		return nil
	}
	return fmt.Errorf("unknown order %q", core.Shorten(o.Do, 80))
}

// stoppedByUs says whether a stop of the command by SIGSTOP is our freezing of it: word of
// it may come when it goes on already.
func (r *run) stoppedByUs(sig syscall.Signal) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sig == syscall.SIGSTOP && (r.frozen || time.Since(r.thawed) < time.Second)
}

// freeze stops every process of the session but its init.
func (r *run) freeze() error {
	r.order.Lock()
	defer r.order.Unlock()
	if r.frozen {
		return nil
	}
	r.stopped = nil
	for _, pid := range r.proc.pids() {
		if st, ok := r.proc.stat(pid); ok && (st.State == 'T' || st.State == 't') && len(r.stopped) < maxStill {
			r.stopped = append(r.stopped, pid)
		}
	}
	if !r.setFrozen(true) {
		return errors.New("freeze: the session is ending")
	}
	// What was under way can still wake one process or another: it is said again until all
	// stand still.
	act := core.ActFreeze
	for range freezeTries {
		if err := r.tellStage(stageMsg{Op: "freeze"}, act); err != nil {
			return err
		}
		act = ""
		if r.still(freezeLooks) {
			return nil
		}
	}
	return core.Hint(errors.New("freeze: not all processes stand still"), "they wake each other: no call of theirs is answered until `sandglass thaw`; `sandglass kill` ends them")
}

// still waits, not for long, until no process of the session runs. One in an uninterruptible
// state waits: for a call that is not answered, for its child, for a disk.
func (r *run) still(looks int) bool {
	for range looks {
		moving := false
		for _, pid := range r.proc.pids() {
			st, ok := r.proc.stat(pid)
			moving = moving || ok && (st.State == 'R' || st.State == 'S')
		}
		if !moving {
			return true
		}
		time.Sleep(freezeRest)
	}
	return false
}

const (
	freezeTries = 20
	freezeLooks = 5
	freezeRest  = 10 * time.Millisecond
)

// thaw lets them go on, but those that were stopped before.
func (r *run) thaw() error {
	r.order.Lock()
	defer r.order.Unlock()
	if !r.frozen {
		return nil
	}
	r.setFrozen(false)
	return r.tellStage(stageMsg{Op: "thaw", PIDs: r.stopped}, core.ActThaw)
}

// maxStill is how many processes that a box had stopped itself stay so: the numbers go to
// its init in one packet.
const maxStill = 4096

// setFrozen is false when the session is over: nobody would let the supervisor go.
func (r *run) setFrozen(f bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over && f {
		return false
	}
	if r.frozen = f; f {
		c := make(chan struct{})
		r.s.frozen.Store(&c)
		return true
	}
	r.s.letGo()
	r.thawed = time.Now()
	return true
}

// ends lets the supervisor go, for good.
func (r *run) ends() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	r.s.letGo()
}

// letGo lets the supervisor answer again.
func (s *supervisor) letGo() {
	if c := s.frozen.Swap(nil); c != nil {
		close(*c)
	}
}

// tellStage has the box's init do something to all processes, and waits until it is done.
func (r *run) tellStage(m stageMsg, act core.Action) error {
	select {
	case <-r.done: // of one that was not waited for
	default:
	}
	if err := send(r.control, m); err != nil {
		return fmt.Errorf("%s: %w", m.Op, err)
	}
	if act != "" {
		r.note(act, strings.Join(r.o.Session.Command, " "), nil)
	}
	select {
	case <-r.done:
		return nil
	case <-time.After(orderPatience / 2):
		return fmt.Errorf("%s: the box's init does not answer", m.Op)
	}
}

// change replaces the session's policy by one that differs in one thing. What the box has
// got already - a connection, an open device - it keeps: freeze or kill ends that.
func (r *run) change(o Order) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.s.policy.Load().Clone()
	var err error
	d := core.Detail{"do": o.Do}
	target := o.Surface
	switch o.Do {
	case "set":
		d["verdict"] = o.Verdict
		if err = p.Set(o.Surface, o.Verdict); err == nil && o.Surface == string(core.FilesShare) {
			err = core.Hint(errors.New("files.share cannot be changed while the box runs"), "shares are in its mounts or are not: end its sessions, and run it anew")
		}
	case "grant":
		target = o.Socket
		err = p.Grant(o.Socket)
	case "rule":
		target = o.Rule
		err = p.Network.AddRule(o.Rule, true)
	case "unrule":
		target = o.Rule
		err = p.Network.RemoveRule(o.Rule)
	default:
		target = o.Socket
		err = p.Revoke(o.Socket)
	}
	if err != nil {
		return err
	}
	r.s.policy.Store(p)
	r.note(core.ActPolicy, target, d)
	if n := r.s.net; n != nil {
		go n.PolicyChanged() // what it lets go no more ends at once; the log may make that wait
		go r.loopback(p)
	}
	return nil
}

// note logs an order that was carried out. The log may make it wait: an order does not.
func (r *run) note(act core.Action, target string, d core.Detail) {
	op := &core.Operation{Time: time.Now(), Surface: core.SandboxLifecycle, Action: act, Target: target,
		Verdict: core.Allowed, Outcome: core.Performed, Rule: "ordered", Detail: d}
	r.later(op)
}

// later logs op, which does not wait for the log. The session's end does.
func (r *run) later(op *core.Operation) {
	if op.Time.IsZero() {
		op.Time = time.Now()
	}
	r.notesMu.Lock()
	defer r.notesMu.Unlock()
	if !r.noted {
		r.notes.Go(func() { r.journal.add(op) })
	}
}

// endNotes waits until all is logged that does not wait itself. What comes then is too late.
func (r *run) endNotes() {
	r.notesMu.Lock()
	r.noted = true
	r.notesMu.Unlock()
	r.notes.Wait()
}

// Process is a process of a running session.
type Process struct {
	Session core.SessionID `json:"session"`
	PID     int            `json:"pid"`   // in the box
	Parent  int            `json:"ppid"`  // in the box; 1 is the session's init
	State   string         `json:"state"` // as ps(1) has it: R, S, D, T, Z
	Threads int64          `json:"threads"`
	CPU     float64        `json:"cpu_seconds"` // with the children that it has waited for
	Memory  int64          `json:"memory"`      // private, in bytes
	Seconds float64        `json:"seconds"`     // since it was started
	Command string         `json:"command"`     // what it says that its arguments are; [exe] when it says nothing
}

const maxCommand = 4096

// Processes lists the processes of the sessions that run in the box of that folder, by
// session and number.
func Processes(dir string) (ps []Process, err error) {
	refs, err := layers.Dir(dir).Running()
	if err != nil {
		return nil, err
	}
	up, err := uptime()
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		root, err := sys.OpenPath(-1, fmt.Sprintf("/proc/%d/root", ref.Init), 0)
		if err != nil {
			continue // it has ended
		}
		own, err := openOwnProc(root)
		sys.CloseFD(root)
		if err != nil {
			continue
		}
		for _, pid := range own.pids() {
			st, ok := own.stat(pid)
			if !ok {
				continue
			}
			cmd := strings.TrimRight(strings.ReplaceAll(string(own.read(pid, "cmdline", maxCommand)), "\x00", " "), " ")
			if cmd == "" {
				cmd = "[" + strings.TrimSpace(string(own.read(pid, "comm", 64))) + "]"
			}
			ps = append(ps, Process{Session: ref.ID, PID: pid, Parent: st.Parent, State: string(st.State), Threads: st.Threads,
				CPU: st.CPU.Seconds(), Memory: own.private(pid), Seconds: max(0, (up - st.Started).Seconds()), Command: cmd})
		}
		own.close()
	}
	return ps, nil
}

// uptime returns how long the machine has run.
func uptime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	text, _, _ := strings.Cut(string(b), " ")
	s, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("read /proc/uptime: %w", err)
	}
	return time.Duration(s * float64(time.Second)), nil
}
