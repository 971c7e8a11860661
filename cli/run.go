package cli

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver"
	"github.com/sandglass/sandglass/events"
)

// defaultBox is the box of a run that names none.
const defaultBox = "default"

// How long the end of a run waits for the bus to have all of the session. What it does
// not have by then is in the spool, and the daemon takes it from there.
const publishPatience = 25 * time.Millisecond

// runOptions are the flags of run.
type runOptions struct {
	box, policy, net, observe, dir string
	rm, noServe                    bool
	set, connect, limit            []string
	rule, publish, resolver        []string
	proxy, pcap                    string
	private, grant                 []string
}

func newRun(p *printer) *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run [flags] [--] COMMAND [ARG...]",
		Short: "Run a command in a box",
		Long: `Run a command in a box. It reads the real files; what it writes, deletes or renames
happens in the box. Its input, output, terminal and signals are passed through.

The exit code is the command's: 128+N when signal N ended it, 126 when it cannot be
executed, 127 when it is not found, 125 when sandglass itself failed.

Everything after the command's name is the command's: put flags of sandglass before it.`,
		Example: `  sandglass run bash
  sandglass run --box work -- npm install
  sandglass run --rm -- sh -c 'rm -rf ~/*; ls ~'`,
		Args: needArgs("the command to run", 1, 0),
		RunE: func(c *cobra.Command, args []string) error { return o.run(p, args) },
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&o.box, "box", "b", "", "the box to run in, made when absent (default \""+defaultBox+"\"; with --rm a new one)")
	f.StringVarP(&o.policy, "policy", "p", "", "the policy of this run, a name or a file with a / in its path (default: the box's; of a new box \""+core.DefaultPolicy+"\")")
	f.StringArrayVar(&o.set, "set", nil, "SURFACE=allow|redirect|block: set a surface otherwise than the policy; may be repeated")
	f.StringArrayVar(&o.connect, "connect", nil, "PATH: a Unix socket outside that the box may connect to, @NAME for an abstract one; may be repeated")
	f.StringArrayVar(&o.limit, "limit", nil, "NAME=VALUE: processes, memory, cpus, cpu-time, open-files, file-size, box-size or wall-time; may be repeated")
	f.StringArrayVar(&o.private, "private", nil, "PLACE: nothing in it is seen in the box, besides the places of the policy; !PLACE takes one out; may be repeated")
	f.StringArrayVar(&o.grant, "grant", nil, "'allow|ask PATH from PROGRAM': who may read what is private, before those of the policy: 'allow ~/.ssh from /usr/bin/ssh'; may be repeated")
	f.BoolVar(&o.rm, "rm", false, "discard the box, with all that is in it, at the end")
	f.StringVar(&o.net, "net", "", "the network: own (of the box, each flow judged and counted), none, host (default: the policy's)")
	f.StringArrayVar(&o.rule, "rule", nil, "RULE of the box's network, before those of the policy: 'allow *.debian.org:443', 'block 10.0.0.0/8', 'ask *'; may be repeated, the first that matches decides")
	f.StringArrayVar(&o.publish, "publish", nil, "[ADDRESS:]PORT:PORT[/udp]: a port of this machine that leads to one of the box; may be repeated")
	f.StringVar(&o.proxy, "proxy", "", "socks5://HOST:PORT or http://HOST:PORT: the proxy that the box's network goes through")
	f.StringArrayVar(&o.resolver, "resolver", nil, "ADDRESS: the name server that the box's questions go to (default: this machine's); may be repeated")
	f.StringVar(&o.pcap, "pcap", "", "keep the last packets of the box's network, at most this much (pcapng, see sandglass pcap)")
	f.Lookup("pcap").NoOptDefVal = defaultCapture
	f.StringVar(&o.observe, "observe", "", "what is recorded: full, changes (no plain reads), lean (programs only) (default: the policy's)")
	f.StringVarP(&o.dir, "dir", "C", "", "the directory to run in (default: this one)")
	f.BoolVar(&o.noServe, "no-serve", false, "do not start the daemon; what is recorded waits for it in the spool")
	complete := map[string]func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective){
		"box": completeBoxes, "policy": completePolicies,
		"set": completeSurfaces, "limit": completeLimits,
		"net": completeWords("own", "none", "host"), "observe": completeWords("full", "changes", "lean"),
		"dir": func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	for name, fn := range complete {
		if err := c.RegisterFlagCompletionFunc(name, fn); err != nil {
			panic(err) // a flag that was not defined above
		}
	}
	return c
}

// session is a run that everything is known of, and nothing was done for yet.
type session struct {
	core.Session
	policy  *core.Policy
	capture int64  // bytes of packets to keep; 0: none
	ref     string // by which a new box finds the policy again
	dir     string
	rm      bool
}

// plan checks all that can be checked before anything is made.
func (o *runOptions) plan(h Home, command []string, now time.Time) (*session, error) {
	s := &session{rm: o.rm}
	s.ID, s.Start, s.Command, s.Box = newSessionID(now), now.UTC(), command, o.box
	switch {
	case o.box == "" && o.rm:
		// A throwaway box of its own: --rm must not discard what is in the default one.
		s.Box = "rm-" + strings.ToLower(string(s.ID[len(s.ID)-10:]))
	case o.box == "":
		s.Box = defaultBox
	}
	if err := core.CheckBoxName(s.Box); err != nil {
		return nil, err
	}
	s.Host = hostName()
	var err error
	policy, fresh := o.policy, false
	switch b, err := h.Box(s.Box); {
	case errors.Is(err, core.ErrNotFound):
		fresh = true
	case errors.Is(err, errBoxFile):
	case err != nil:
		return nil, err
	case policy == "":
		policy = b.Policy
	}
	if s.policy, s.ref, err = h.FindPolicy(policy); err != nil {
		return nil, err
	}
	if err := o.adjust(s.policy); err != nil {
		return nil, err
	}
	s.Policy, s.Net, s.Observe = s.policy.Name, s.policy.Net, s.policy.Observe
	if o.net != "" {
		if s.Net, err = core.ParseNet(o.net); err != nil {
			return nil, err
		}
	}
	if o.observe != "" {
		if s.Observe, err = core.ParseObserve(o.observe); err != nil {
			return nil, err
		}
	}
	for flag, given := range map[string]bool{"--rule": len(o.rule) > 0, "--publish": len(o.publish) > 0, "--proxy": o.proxy != "", "--resolver": len(o.resolver) > 0, "--pcap": o.pcap != ""} {
		if given && s.Net != core.NetOwn {
			return nil, core.Hint(fmt.Errorf("%s: the network is %q", flag, s.Net), "it is of a box's own network: --net own")
		}
	}
	if o.pcap != "" {
		if s.capture, err = core.ParseSize(o.pcap); err != nil {
			return nil, core.Hint(fmt.Errorf("--pcap %q: %w", core.Shorten(o.pcap, 80), err), "a size, as in --pcap=64MiB")
		}
	}
	if s.dir, err = workingDir(h, o.dir); err != nil {
		return nil, err
	}
	// A new box looks as the real system does: a command that is not here is not there.
	// In one that was used, it may be what the box itself has made.
	if fresh {
		if err := lookCommand(command[0], s.dir); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func newSessionID(now time.Time) core.SessionID {
	return core.SessionID(ulid.MustNew(ulid.Timestamp(now), rand.Reader).String())
}

// adjust makes the changes to the policy that the flags ask for.
func (o *runOptions) adjust(p *core.Policy) error {
	for _, kv := range o.set {
		surface, verdict, ok := strings.Cut(kv, "=")
		if !ok {
			return core.Hint(fmt.Errorf("--set %q: no =", core.Shorten(kv, 80)), "as in --set device.camera=allow")
		}
		if err := p.Set(surface, verdict); err != nil {
			return fmt.Errorf("--set: %w", err)
		}
	}
	for _, c := range o.connect {
		if err := p.Grant(c); err != nil {
			return fmt.Errorf("--connect: %w", err)
		}
	}
	for _, t := range o.private {
		if err := p.AddPrivate(t); err != nil {
			return fmt.Errorf("--private: %w", err)
		}
	}
	grants := p.Grants
	p.Grants = nil
	for _, t := range o.grant {
		if err := p.AddGrant(t); err != nil {
			return fmt.Errorf("--grant: %w", err)
		}
	}
	p.Grants = append(p.Grants, grants...)
	if err := p.CheckGrants(); err != nil {
		return fmt.Errorf("--grant: %w", err)
	}
	rules := p.Network.Rules
	p.Network.Rules = nil
	for _, r := range o.rule {
		if err := p.Network.AddRule(r, false); err != nil {
			return fmt.Errorf("--rule: %w", err)
		}
	}
	p.Network.Rules = append(p.Network.Rules, rules...)
	for _, t := range o.publish {
		if err := p.Network.AddPublish(t); err != nil {
			return fmt.Errorf("--publish: %w", err)
		}
	}
	for i, t := range o.resolver {
		if i == 0 {
			p.Network.Resolvers = nil
		}
		if err := p.Network.AddResolver(t); err != nil {
			return fmt.Errorf("--resolver: %w", err)
		}
	}
	if o.proxy != "" {
		if err := p.Network.SetProxy(o.proxy); err != nil {
			return fmt.Errorf("--proxy: %w", err)
		}
	}
	for _, kv := range o.limit {
		name, value, ok := strings.Cut(kv, "=")
		if !ok {
			return core.Hint(fmt.Errorf("--limit %q: no =", core.Shorten(kv, 80)), "as in --limit memory=512MiB")
		}
		if err := p.Limits.Set(name, value); err != nil {
			return fmt.Errorf("--limit: %w", err)
		}
	}
	return nil
}

// workingDir returns the absolute path of the directory to run in.
func workingDir(h Home, dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("working directory: %w", err)
	}
	fi, err := os.Stat(dir)
	if err == nil && !fi.IsDir() {
		err = fmt.Errorf("%s is not a directory", dir)
	}
	if err != nil {
		return "", core.Hint(fmt.Errorf("working directory: %w", err), "choose another one with --dir")
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil && (real == string(h) || strings.HasPrefix(real, string(h)+"/")) {
		return "", core.Hint(fmt.Errorf("working directory: %s is in the state folder, which no box can see", dir), "choose another one with --dir")
	}
	return dir, nil
}

// commandError is a command that does not exist or cannot be executed, with the exit code
// that a shell has for it.
type commandError struct {
	code int
	err  error
}

func (e *commandError) Error() string { return e.err.Error() }
func (e *commandError) Unwrap() error { return e.err }

// lookCommand says why a command could not be run from dir, as execvp(3) would find it.
func lookCommand(name, dir string) error {
	if name == "" {
		return &commandError{127, errors.New("run: the command is empty")}
	}
	path := name
	if !strings.Contains(name, "/") {
		if _, err := exec.LookPath(name); err == nil || errors.Is(err, exec.ErrDot) {
			return nil
		}
		return core.Hint(&commandError{127, fmt.Errorf("run %s: command not found", core.Shorten(name, 200))}, "commands are looked for in PATH, here and in the box")
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &commandError{127, fmt.Errorf("run %s: no such file", core.Shorten(name, 200))}
	case err != nil:
		return &commandError{126, fmt.Errorf("run: %w", err)}
	case fi.IsDir():
		return &commandError{126, fmt.Errorf("run %s: it is a directory", core.Shorten(name, 200))}
	}
	return nil // whether it can be executed the kernel knows best
}

// run runs a command in a box and returns its exit code as an [exitCode], or why there is none.
func (o *runOptions) run(p *printer, command []string) error {
	err := o.runSession(p, command)
	var ce *commandError
	var de *driver.CommandError
	var ke *driver.KilledError
	switch {
	case errors.As(err, &ke):
		p.Error(ke)
		return exitCode(128 + 9)
	case errors.As(err, &ce):
		p.Error(err)
		return exitCode(ce.code)
	case errors.As(err, &de):
		p.Error(fmt.Errorf("run %w", err))
		return exitCode(de.Code)
	}
	return err
}

func (o *runOptions) runSession(p *printer, command []string) (err error) {
	h, err := OpenHome()
	if err != nil {
		return err
	}
	s, err := o.plan(h, command, time.Now())
	if err != nil {
		return err
	}
	box, made, use, err := h.UseBox(s.Box, s.ref, s.Start)
	if err != nil {
		return err
	}
	defer func() { use.Unlock() }()
	if s.rm {
		defer func() {
			use.Unlock()
			if rerr := h.RemoveBox(s.Box, removeLayers); rerr != nil {
				p.Error(fmt.Errorf("--rm: %w", rerr))
			} else {
				noteBox(h, events.BoxRemove, box)
			}
		}()
	}
	d := dashboard{nats: h.externalBus()}
	if !o.noServe {
		d = h.summonDaemon()
	}
	if p.errTTY {
		d.announce(p, h, s.Box)
	}
	if made {
		if err := noteBox(h, events.BoxCreate, box); err != nil {
			return homeHint(err)
		}
	}
	return s.record(p, h, d.nats, !o.noServe)
}

// record runs the session with its log.
func (s *session) record(p *printer, h Home, natsURL string, serve bool) error {
	var trouble troubles
	full := &fullDisk{p: p, home: h}
	log, err := events.OpenLog(events.LogOptions{Home: string(h), Session: s.Session, NATSURL: natsURL, Bad: trouble.add, Full: full.reserve})
	if err != nil {
		return homeHint(err)
	}
	capture, err := s.captureFile(h)
	if err != nil {
		return err
	}
	code := exitSandglass
	if err = log.Begin(events.Life{}); err == nil {
		ctx := context.Background() // signals are the command's; the driver passes them on
		code, err = driver.Run(ctx, driver.Options{
			Capture: capture, CaptureLimit: s.capture, Notice: func(text string) {
				for line := range strings.Lines(text) {
					p.Note("%s", strings.TrimSuffix(line, "\n"))
				}
			},
			Throwaway: s.rm,
			BoxDir:    h.box(s.Box), Hide: []string{string(h)}, Session: s.Session, Policy: s.policy, Dir: s.dir,
			Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
			Guarded: h.ports, Log: log.Observer(ctx, full.held), Ended: log.Ending,
		})
	}
	lerr := log.End(code)
	// The daemon may be away for any length of time; a run is over when its command is.
	ctx, cancel := context.WithTimeout(context.Background(), publishPatience)
	defer cancel()
	if cerr := log.Close(ctx); lerr == nil {
		lerr = cerr
	}
	if serve && log.Stats().Waiting > 0 {
		// The daemon may have died since this run began, even in the moment when it was
		// looked for and still held its lock. If it cannot be started again the spool
		// waits, and the next command says why.
		h.reviveDaemon()
	}
	if err == nil && lerr != nil {
		err = homeHint(fmt.Errorf("end the log of session %s: %w", s.ID, lerr))
	}
	if err != nil {
		return errors.Join(homeHint(err), trouble.but(err))
	}
	return exitCode(code)
}

// defaultCapture is how much --pcap keeps when it does not say.
const defaultCapture = "64MiB"

// captureFile is where the session's packets go, "" when they are not kept.
func (s *session) captureFile(h Home) (string, error) {
	if s.capture == 0 {
		return "", nil
	}
	if err := os.MkdirAll(h.path("captures"), 0o700); err != nil {
		return "", fmt.Errorf("--pcap: %w", err)
	}
	return h.captureOf(string(s.ID)), nil
}

// fullDisk tells the person at the terminal what a full disk does to the box. The box can
// fill the disk and empty it again as often as it likes: so it says each thing once in a
// while, and the end of it only when the beginning was said.
type fullDisk struct {
	p    *printer
	home Home

	mu           sync.Mutex
	open         bool // the end of it is to be said
	said, heldAt time.Time
}

// fullAgain is how long nothing is said a second time.
const fullAgain = 10 * time.Second

// reserve is told by the log that the disk is full, and that it no longer is.
func (f *fullDisk) reserve(full bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case full && time.Since(f.said) > fullAgain:
		f.open, f.said = true, time.Now()
		f.p.Alert("the disk is full: what the box writes fails; the log goes on in its reserve. Make room on the disk of %s", string(f.home))
	case !full && f.open:
		f.open = false
		f.p.Alert("there is room on the disk again")
	}
}

// held is called when the reserve is used up, but for what is for the end, and when it no
// longer is.
func (f *fullDisk) held(full bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if full && time.Since(f.heldAt) > fullAgain {
		f.open, f.heldAt = true, time.Now()
		f.p.Alert("the disk is full, the box waits until there is room in %s", string(f.home))
	}
}

// troubles keeps the first few things that went wrong beside the way: the terminal is the
// command's until it ends.
type troubles struct {
	mu   sync.Mutex
	errs []error
}

func (t *troubles) add(err error) {
	if errors.Is(err, context.Canceled) {
		return // a connection to the bus that the run's end came before: no trouble
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.errs) < 4 {
		t.errs = append(t.errs, err)
	}
}

// but returns them without what err says already.
func (t *troubles) but(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	said := err.Error()
	return errors.Join(slices.DeleteFunc(slices.Clone(t.errs), func(e error) bool { return strings.Contains(said, e.Error()) })...)
}

// dashboard is what a run knows of the daemon.
type dashboard struct {
	address string // host:port, "" when unknown
	token   string // of a sign-in link that the daemon was told of
	nats    string
	err     error // why there is no daemon
}

// summonDaemon starts the daemon when there is none, and never waits for it.
func (h Home) summonDaemon() (d dashboard) {
	d.token, d.nats = newToken(), h.externalBus()
	d.address, d.err = h.startDaemon(defaultListen, true, orders{Token: d.token, NATS: d.nats})
	if errors.Is(d.err, errLocked) { // it runs, or is about to
		d.token, d.address, d.err = "", "", nil
	}
	return d
}

func newToken() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails: crypto/rand
	return base64.RawURLEncoding.EncodeToString(b)
}

// announce prints where the dashboard is, with a one-time link to sign in.
func (d dashboard) announce(p *printer, h Home, box string) {
	link := ""
	switch {
	case d.err != nil:
		p.Error(fmt.Errorf("the daemon did not start, the box runs without it: %w", d.err))
		return
	case d.token != "":
		link = signInLink(d.address, d.token)
	default:
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		r, err := h.ask(ctx, request{Do: doLink}, nil)
		if err != nil {
			p.Note("box %s; `sandglass link` prints a link to the dashboard", box)
			return
		}
		link = r.Link
	}
	p.Note("box %s; dashboard %s", box, link)
}

// noteBox puts a fact of a box's life into the log. It waits in the spool for the daemon.
func noteBox(h Home, kind events.LifeKind, b core.Box) error {
	return events.Note(string(h), events.Life{Kind: kind, Time: time.Now(), Host: hostName(), Box: b.Name, Policy: b.Policy})
}

// hostName names this machine in the log.
func hostName() string {
	if n, err := os.Hostname(); err == nil && n != "" {
		return n
	}
	return "localhost"
}
