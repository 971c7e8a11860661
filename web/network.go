package web

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/core/query"
)

// Orders is what the pages can have the sessions of a box do. An error is for people.
type Orders interface {
	// Cut ends one flow of a session at once or, where both are "", all flows of the box.
	Cut(ctx context.Context, box string, session core.SessionID, flow string) error
	// Block puts a rule of the network ([core.ParseFlowRule]) before those there are.
	Block(ctx context.Context, box, rule string) error
}

const (
	flowsShown = 10  // of a box's page
	namesShown = 12  // of a box's page
	flowsPage  = 100 // of a page of the network
	namesPage  = 400

	blockedFlows = "verdict:blocked surface:net.*,ipc.loopback"
	offlineRule  = "block *"
)

// netView is what the pages show of a box's network, or of one of its sessions.
type netView struct {
	flows    []core.FlowView
	totals   core.FlowTotals
	names    []core.NameView
	namesAll int
	now      time.Time
	orders   bool // there is somebody to take them
	fresh    bool // the newest flows, the open ones in front
	openOnly bool
	older    string // address; "" when there is none
}

// readNetwork reads what a box's page shows of its network: the open flows first.
func (s *site) readNetwork(ctx context.Context, v *boxView) error {
	n := netView{now: time.Now(), orders: s.Orders != nil && v.view.Running > 0, fresh: true}
	ask := func(open bool) ([]core.FlowView, error) {
		p, err := s.Source.Flows(ctx, v.box, v.boxFilter.session, open, 0, flowsShown)
		return p.Flows, err
	}
	var err error
	if n.totals, err = s.Source.FlowTotals(ctx, v.box, v.boxFilter.session); err != nil {
		return fmt.Errorf("read the network's totals: %w", err)
	}
	if n.flows, err = ask(true); err != nil {
		return fmt.Errorf("read open flows: %w", err)
	}
	if len(n.flows) < flowsShown {
		latest, err := ask(false)
		if err != nil {
			return fmt.Errorf("read flows: %w", err)
		}
		n.flows = withEnded(n.flows, latest)
	}
	if n.names, n.namesAll, err = s.Source.Names(ctx, v.box, namesShown); err != nil {
		return fmt.Errorf("read names: %w", err)
	}
	v.network = n
	return nil
}

// withEnded adds to open flows the latest that have ended, as many as there is room for.
// One that ended between the two readings is there once.
func withEnded(open, latest []core.FlowView) []core.FlowView {
	type id struct {
		session core.SessionID
		flow    string
	}
	have := map[id]bool{}
	for _, f := range open {
		have[id{f.Session, f.Flow}] = true
	}
	for _, f := range latest {
		if len(open) < flowsShown && !have[id{f.Session, f.Flow}] && !f.End.IsZero() {
			open = append(open, f)
		}
	}
	return open
}

// blockedNet counts what was blocked on the network's surfaces.
func blockedNet(cs []core.SurfaceCount) (n uint64) {
	for _, c := range cs {
		if strings.HasPrefix(string(c.Surface), "net.") || c.Surface == core.IPCLoopback {
			n += c.Counts.Blocked
		}
	}
	return n
}

// networkURL is the address of the page of all flows.
func (f boxFilter) networkURL(open bool, before core.OpCursor) string {
	v := url.Values{}
	if f.session != "" {
		v.Set("session", string(f.session))
	}
	if open {
		v.Set("open", "1")
	}
	if before != 0 {
		v.Set("before", strconv.FormatUint(uint64(before), 10))
	}
	return withValues("/boxes/"+url.PathEscape(f.box)+"/network", v)
}

// ofFlow is the address of the operations of a flow.
func (f boxFilter) ofFlow(v *core.FlowView) string {
	return boxFilter{box: f.box, session: v.Session}.with("detail.flow:" + query.Quote(v.Flow))
}

// post is the address that takes orders.
func (f boxFilter) post(what string) string { return "/boxes/" + url.PathEscape(f.box) + "/" + what }

// networkPage shows all flows, page by page, and all names.
func (s *site) networkPage(w http.ResponseWriter, r *http.Request) {
	v := boxView{boxFilter: s.readFilter(r)}
	open := r.URL.Query().Get("open") == "1"
	err := s.readTop(r.Context(), &v)
	if err == nil {
		err = s.readFlows(r.Context(), &v, open)
	}
	if err != nil {
		s.failErr(w, r, err, "There is no such box, or no such session in it.")
		return
	}
	s.render(w, r, http.StatusOK, networkPage(s.member(r, "Network of "+v.box, ""), v))
}

func (s *site) readFlows(ctx context.Context, v *boxView, open bool) error {
	n := netView{now: time.Now(), orders: s.Orders != nil && v.view.Running > 0, openOnly: open}
	counts, err := s.Source.Counts(ctx, v.box, v.boxFilter.session)
	if err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	v.surfaces = counts
	if n.totals, err = s.Source.FlowTotals(ctx, v.box, v.boxFilter.session); err != nil {
		return fmt.Errorf("read the network's totals: %w", err)
	}
	p, err := s.Source.Flows(ctx, v.box, v.boxFilter.session, open, v.before, flowsPage)
	if err != nil {
		return fmt.Errorf("read flows: %w", err)
	}
	n.flows = p.Flows
	if p.More && len(p.Cursors) > 0 {
		n.older = v.networkURL(open, p.Cursors[len(p.Cursors)-1])
	}
	if n.names, n.namesAll, err = s.Source.Names(ctx, v.box, namesPage); err != nil {
		return fmt.Errorf("read names: %w", err)
	}
	v.network = n
	return nil
}

// orderPatience is how long a page waits until an order is carried out.
const orderPatience = 10 * time.Second

// ordered has an order carried out and goes back to the page that it was given on, which
// says what became of it.
func (s *site) ordered(w http.ResponseWriter, r *http.Request, do func(ctx context.Context, box string) (said string, err error)) {
	if err := r.ParseForm(); err != nil {
		s.fail(w, r, http.StatusBadRequest, "The form could not be read.", "")
		return
	}
	box := chi.URLParam(r, "box")
	if name, err := url.PathUnescape(box); err == nil {
		box = name
	}
	if _, err := s.Source.Box(r.Context(), box); err != nil {
		s.failErr(w, r, err, "There is no box of that name.")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), orderPatience)
	defer cancel()
	said, err := "", error(nil)
	if s.Orders == nil {
		err = fmt.Errorf("this dashboard only shows")
	} else {
		said, err = do(ctx, box)
	}
	bad := err != nil
	if bad {
		said = core.Shorten(strings.Join(append([]string{err.Error()}, core.Hints(err)...), ". "), 600)
	}
	s.auth.say(r, said, bad)
	http.Redirect(w, r, localPath(r.PostForm.Get("back")), http.StatusSeeOther)
}

// cut ends a flow, or all flows of a box.
func (s *site) cut(w http.ResponseWriter, r *http.Request) {
	s.ordered(w, r, func(ctx context.Context, box string) (string, error) {
		session, flow := core.SessionID(r.PostForm.Get("session")), r.PostForm.Get("flow")
		if (session == "") != (flow == "") || len(session) > 64 || len(flow) > 64 {
			return "", fmt.Errorf("no flow was named")
		}
		if err := s.Orders.Cut(ctx, box, session, flow); err != nil {
			return "", fmt.Errorf("cut: %w", err)
		}
		if flow == "" {
			return "All flows of the box were cut.", nil
		}
		return "Flow " + flow + " was cut.", nil
	})
}

// offline blocks what is to come, then cuts what there is.
func (s *site) offline(w http.ResponseWriter, r *http.Request) {
	s.ordered(w, r, func(ctx context.Context, box string) (string, error) {
		if err := s.Orders.Block(ctx, box, offlineRule); err != nil {
			return "", fmt.Errorf("offline: %w", err)
		}
		if err := s.Orders.Cut(ctx, box, "", ""); err != nil {
			return "", fmt.Errorf("new flows are blocked, but those there are: %w", err)
		}
		return "The sessions of this box are offline: all flows were cut, new ones are blocked. To take that back: sandglass box set " + shellQuote(box) + " --unrule '" + offlineRule + "'", nil
	})
}

// say keeps words for the next page of the same browser.
func (a *Auth) say(r *http.Request, words string, bad bool) {
	a.sessions.Put(r.Context(), "said", words)
	a.sessions.Put(r.Context(), "said badly", bad)
}

// said takes what was kept.
func (a *Auth) said(r *http.Request) (words string, bad bool) {
	return a.sessions.PopString(r.Context(), "said"), a.sessions.PopBool(r.Context(), "said badly")
}

// sizeText writes a number of bytes for people.
func sizeText(n uint64) string {
	const units = "KMGTPE"
	if n < 1000 {
		return strconv.FormatUint(n, 10) + "\u202fB"
	}
	v, i := float64(n)/1024, 0
	for ; v >= 999.5 && i < len(units)-1; i++ {
		v /= 1024
	}
	digits := 0
	if v < 9.95 {
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + "\u202f" + units[i:i+1] + "iB"
}

// exactly is the title of what sizeText shows.
func exactly(n, packets uint64) string {
	return number(n) + plural(int(min(n, 2)), " byte in ", " bytes in ") + number(packets) + plural(int(min(packets, 2)), " packet", " packets")
}

// packetsText is short for the line below a size.
func packetsText(n uint64) string { return number(n) + plural(int(min(n, 2)), " pkt", " pkts") }

// spanText writes how long something took or has taken, for people.
func spanText(d time.Duration) string {
	switch d = max(0, d); {
	case d < time.Second:
		return strconv.Itoa(int(d.Milliseconds())) + "\u202fms"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "\u202fs"
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "\u202fs"
	case d < time.Hour:
		return fmt.Sprintf("%d:%02d\u202fmin", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d:%02d\u202fh", int(d.Hours()), int(d.Minutes())%60)
}

// rttText writes a round-trip time; "" when it is not known.
func rttText(us int64) string {
	switch {
	case us <= 0:
		return ""
	case us < 10_000:
		return strconv.FormatFloat(float64(us)/1000, 'f', 1, 64) + "\u202fms"
	}
	return strconv.FormatInt(us/1000, 10) + "\u202fms"
}

// lasted is how long a flow was, or has been, open.
func (n *netView) lasted(f *core.FlowView) time.Duration {
	if f.End.IsZero() {
		return n.now.Sub(f.Start)
	}
	return f.End.Sub(f.Start)
}

// flowTitle is what there is to know of a flow that its line has no room for.
func flowTitle(f *core.FlowView) string {
	s := "Decided by " + f.Rule
	switch f.By {
	case "dns":
		s += ". The name is what it asked the resolver for"
	case "tls", "http":
		s += ". The name is what the flow said itself (" + f.By + ")"
	}
	if f.Cert != "" {
		s += ". Certificate of " + f.Cert
	}
	s, _ = cut(s, 600)
	return visibleText(s)
}

// endText says why a flow is over.
func endText(f *core.FlowView) string {
	if f.Errno != "" {
		return core.Shorten(f.Errno, 24)
	}
	if f.Reason == "" {
		return "ended"
	}
	return core.Shorten(f.Reason, 24)
}

// inWord marks a flow that came in by a published port.
func inWord(f *core.FlowView) string {
	if f.Inbound {
		return " in"
	}
	return ""
}

// placeWord says where a flow without a name leads to.
func placeWord(f *core.FlowView) string {
	switch {
	case f.Inbound:
		return "to a published port"
	case f.Surface == core.IPCLoopback:
		return "this machine"
	case f.Surface == core.NetDNS:
		return "names past the resolver"
	}
	return "no name"
}

// whoWord stands for the process where there is none.
func whoWord(f *core.FlowView) string {
	if f.Inbound {
		return "from outside"
	}
	return "not known"
}

func exeTitle(exe string) string {
	s, _ := cut(exe, 300)
	return visibleText(s)
}

func nameTitle(n *core.NameView) string {
	s := fmt.Sprintf("%s, decided by %s. First %s, last %s", n.Verdict, n.Rule, clockText(n.First, false), clockText(n.Last, false))
	s, _ = cut(s, 600)
	return visibleText(s)
}

// back is the address of the page itself, to come back to.
func (v boxView) back() string {
	if v.network.fresh {
		return v.url()
	}
	return v.networkURL(v.network.openOnly, v.before)
}
