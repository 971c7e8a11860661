package driver

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// Shares: network file systems, those of programs (FUSE, gvfs among them), and what is
// plugged in. Somebody else answers for what is in them, or it leaves with whoever pulls it
// out. In a box they are masked, unless the policy says that they may be read: then they
// are bound, read-only, without devices and set-user-ID. Nothing is ever written there.
//
// Who answers may also not answer: a look at such a place can wait for ever. So it is not
// looked at outside of the box: which file systems there are, /proc/self/mountinfo tells;
// the directory that a share is bound on is made without asking what it is bound from; the
// bind itself, where some file systems ask their server whether the root is still the same
// (fs/namei.c, complete_walk; NFS and 9P), is done by a process that can be left behind;
// and the supervisor reads no link below a share, so that the log names a link there by its
// own path. What a program of the box does there may wait for ever, as outside.

// removable says whether a mount point is one for what is plugged in: those that udisks
// makes. What is mounted elsewhere by hand is taken for what its type says.
func removable(point string) bool {
	return point != "/media" && under(point, "/media") || point != "/run/media" && under(point, "/run/media")
}

// mountKind says what a mount means for a box.
func mountKind(e mountEntry) fsKind {
	k := fsKinds[e.fstype]
	switch {
	case strings.HasPrefix(e.fstype, "fuse.") || e.fstype == "fuse" || e.fstype == "fuseblk":
		return fsShare // a program outside answers, whatever it is called
	case (k == fsLocal || k == fsImage) && removable(e.point):
		return fsShare
	}
	return k
}

// sharesIn lists the mount points of shares.
func sharesIn(vis map[string]mountEntry) (ps []string) {
	for p, e := range vis {
		if mountKind(e) == fsShare {
			ps = append(ps, p)
		}
	}
	sort.Strings(ps)
	return ps
}

// planShares finishes the plan with what the policy says of shares. held are those on which
// a private place is: they stay masked, as nothing in them is told from it.
func (r *run) planShares(vis map[string]mountEntry, held map[string]bool) error {
	if sharesRead(r.o.Policy) {
		r.steps = readShares(r.steps, vis, append(hidden(vis, r.o.Hide), slices.Collect(maps.Keys(held))...))
	}
	blindly(r.steps)
	if s, ok := onShare(r.steps, r.o.Dir); ok && s.Kind == stepMask {
		hint := "`--set files.share=allow` lets it read shares"
		if sharesRead(r.o.Policy) {
			hint = "shares with a private place or the state folder on them stay masked"
		}
		return core.Hint(fmt.Errorf("working directory: %s is on a share (%s at %s), which the box does not see", r.o.Dir, s.Share, s.Path), hint, "choose another directory with --dir")
	}
	return nil
}

// readShares turns the masks of shares in a plan into binds, and adds the shares below
// /run, which is the box's own. One that shows a place in hides stays masked.
func readShares(steps []planStep, vis map[string]mountEntry, hides []string) []planStep {
	holds := func(p string) bool {
		return slices.ContainsFunc(hides, func(h string) bool { return under(h, p) })
	}
	for i, s := range steps {
		if s.Share != "" && !holds(s.Path) {
			steps[i].Kind, steps[i].ReadOnly = stepShare, true
		}
	}
	for _, p := range sharesIn(vis) {
		if !under(p, "/run") || holds(p) {
			continue
		}
		inAnother := false
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			if m, ok := vis[d]; ok && mountKind(m) != fsLocal {
				inAnother = true
			}
		}
		if !inAnother {
			steps = append(steps, planStep{Kind: stepShare, Path: p, ReadOnly: true, Share: vis[p].fstype, Dev: vis[p].dev})
		}
	}
	return steps
}

// blindly notes in the frames of a plan which of their mount points must not be looked at.
func blindly(steps []planStep) {
	for _, s := range steps {
		if s.Share == "" {
			continue
		}
		for i := range steps {
			if steps[i].Kind == stepFrame && steps[i].Path == path.Dir(s.Path) {
				steps[i].Blind = append(steps[i].Blind, path.Base(s.Path))
			}
		}
	}
}

// sharesRead is whether a policy lets shares be read.
func sharesRead(p *core.Policy) bool { return p.Decide(core.FilesShare).Verdict == core.Allowed }

// boundShares are the places of a plan's shares that are read.
func boundShares(steps []planStep) (ps []string) {
	for _, s := range steps {
		if s.Kind == stepShare {
			ps = append(ps, s.Path)
		}
	}
	return ps
}

// onShare returns the share of the plan that dir is on, if on one.
func onShare(steps []planStep, dir string) (planStep, bool) {
	for _, s := range steps {
		if s.Share != "" && under(dir, s.Path) {
			return s, true
		}
	}
	return planStep{}, false
}

// share is a share as the box has it.
type share struct {
	path string
	read bool // bound; else masked
	kind string
}

// sharesOf asks the kernel which of the plan's shares are in a box's view, and how. The
// box's mounts may be those of a session that began before a share was mounted outside.
func sharesOf(initPID int, steps []planStep) (out []share, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", initPID))
	if err != nil {
		return nil, fmt.Errorf("the box's mounts: %w", err)
	}
	defer f.Close()
	all, err := parseMountinfo(f)
	if err != nil {
		return nil, fmt.Errorf("the box's mounts: %w", err)
	}
	vis := visibleMounts(all)
	for _, s := range steps {
		if s.Share == "" {
			continue
		}
		if e, ok := vis[s.Path]; ok {
			out = append(out, share{s.Path, e.dev == s.Dev, s.Share})
		}
	}
	sort.Slice(out, func(i, j int) bool { return len(out[i].path) > len(out[j].path) })
	return out, nil
}

// shareOf returns the share that p is on.
func (s *supervisor) shareOf(p string) (share, bool) {
	for _, x := range s.shares {
		if under(p, x.path) {
			return x, true
		}
	}
	return share{}, false
}

// onShare judges an operation on a share: a look at what is masked, and whatever changes
// something, is refused.
func (s *supervisor) onShare(x share, sf core.Surface, act core.Action, p place, d core.Detail, writes bool) answer {
	if d == nil {
		d = core.Detail{}
	}
	d["fstype"] = x.kind
	if !x.read {
		errno := syscall.EACCES
		if writes {
			errno = syscall.EROFS
		}
		return s.refuse(core.FilesShare, act, p.path, "mask", errno, d)
	}
	if writes {
		return s.refuse(core.FilesShare, act, p.path, "read-only mount", syscall.EROFS, d)
	}
	for _, needs := range []core.Surface{sf, core.FilesShare} { // a program there is executed, too
		if dec := s.policy.Load().Decide(needs); dec.Verdict == core.Blocked {
			return s.refuse(core.FilesShare, act, p.path, dec.Rule, syscall.EACCES, d)
		}
	}
	return answer{ops: [2]*core.Operation{{Surface: core.FilesShare, Action: act, Target: p.path, Verdict: core.Allowed,
		Rule: s.policy.Load().Decide(core.FilesShare).Rule, Detail: d}}}
}

// shareName is what the process is called that binds a share.
const shareName = "sandglass-share"

// sharePatience is how long all shares of a box may take to be bound.
const sharePatience = 5 * time.Second

// bindShare is that process: it binds a share of the caller's on its place below a root.
func bindShare(root, p string) {
	if err := sys.BindShare(root, p); err != nil {
		fmt.Fprint(os.NewFile(1, "why"), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// share binds a share, or masks it when it does not answer.
func (s *stage) share(m stageMount) error {
	if s.shareEnd.IsZero() {
		s.shareEnd = time.Now().Add(sharePatience)
	}
	if under(m.Path, "/run") {
		if err := os.MkdirAll(s.cfg.Root+m.Path, 0o755); err != nil {
			return err
		}
	}
	why, err := s.bindAside(m.Path)
	if err != nil || why == "" {
		return err
	}
	m.Kind, m.Why = stepMask, m.Share+": "+why
	return s.mount(m)
}

// bindAside has a share bound by another process. why says why it was not.
func (s *stage) bindAside(p string) (why string, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	pidfd := -1
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		w.Close()
		return "", err
	}
	pid, err := syscall.ForkExec(sys.SelfExe(), []string{shareName, s.cfg.Root, p}, &syscall.ProcAttr{
		Files: []uintptr{null.Fd(), w.Fd(), null.Fd()}, Sys: &syscall.SysProcAttr{PidFD: &pidfd, Pdeathsig: syscall.SIGKILL}})
	null.Close()
	w.Close()
	if err != nil {
		return "", fmt.Errorf("start what binds %s: %w", p, err)
	}
	defer sys.CloseFD(pidfd)
	if !sys.WaitPidfd(pidfd, time.Until(s.shareEnd)) {
		// Whoever waits for a server can be killed; if not at once, it is reaped with the rest.
		sys.PidfdKill(pidfd, syscall.SIGKILL)
		return "it does not answer", nil
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
		return "", fmt.Errorf("bind %s: %w", p, err)
	}
	if ws.ExitStatus() == 0 {
		return "", nil
	}
	var text [512]byte
	n, _ := r.Read(text[:])
	return "cannot be bound: " + string(text[:max(n, 0)]), nil
}
