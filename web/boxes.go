package web

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/sandglass/sandglass/core"
)

// maxBoxes is how many boxes one page shows; the others are found by name.
const maxBoxes = 300

// boxesView is what the page of all boxes shows.
type boxesView struct {
	boxes  []core.BoxView
	name   string // what names must contain
	sort   boxOrder
	all    int // boxes there are
	found  int // boxes whose name matches
	total  core.Counts
	active int // running sessions
}

// boxOrder is how boxes are sorted: by a column, the other way round with a "-" before
// it. "" is what runs first, then what ran last; that order does not change with every
// operation of two boxes that both run.
type boxOrder string

// boxColumns are the columns by which boxes can be sorted, as one first wants to see
// them: names from a to z, numbers from the highest, times from the latest.
var boxColumns = map[boxOrder]func(a, b *core.BoxView) int{
	"box":        func(a, b *core.BoxView) int { return cmp.Compare(a.Name, b.Name) },
	"state":      func(a, b *core.BoxView) int { return cmp.Compare(b.Running, a.Running) },
	"allowed":    func(a, b *core.BoxView) int { return cmp.Compare(b.Counts.Allowed, a.Counts.Allowed) },
	"redirected": func(a, b *core.BoxView) int { return cmp.Compare(b.Counts.Redirected, a.Counts.Redirected) },
	"blocked":    func(a, b *core.BoxView) int { return cmp.Compare(b.Counts.Blocked, a.Counts.Blocked) },
	"leaks":      func(a, b *core.BoxView) int { return cmp.Compare(b.Counts.Leaks, a.Counts.Leaks) },
	"policy":     func(a, b *core.BoxView) int { return cmp.Compare(a.Policy, b.Policy) },
	"last":       func(a, b *core.BoxView) int { return b.LastUse.Compare(a.LastUse) },
}

// column is what o sorts by, and whether the other way round.
func (o boxOrder) column() (column boxOrder, back bool) {
	name, back := strings.CutPrefix(string(o), "-")
	return boxOrder(name), back
}

// readOrder returns the order of that name; the usual one where there is none.
func readOrder(name string) boxOrder {
	if column, _ := boxOrder(name).column(); boxColumns[column] == nil {
		return ""
	}
	return boxOrder(name)
}

func (o boxOrder) compare(a, b *core.BoxView) int {
	column, back := o.column()
	if by := boxColumns[column]; by != nil {
		c := by(a, b)
		if back {
			c = -c
		}
		return cmp.Or(c, cmp.Compare(a.Name, b.Name))
	}
	if c := cmp.Compare(min(b.Running, 1), min(a.Running, 1)); c != 0 {
		return c
	}
	if a.Running == 0 {
		if c := b.LastUse.Compare(a.LastUse); c != 0 {
			return c
		}
	}
	return cmp.Compare(a.Name, b.Name)
}

// by is the address of the same boxes sorted by a column; the other way round where they
// are sorted by it already.
func (v boxesView) by(column boxOrder) string {
	if v.sort == column {
		column = "-" + column
	}
	return boxesView{name: v.name, sort: column}.url("/")
}

// url is the address at path of what v asks for.
func (v boxesView) url(path string) string {
	q := url.Values{}
	if v.name != "" {
		q.Set("name", v.name)
	}
	if v.sort != "" {
		q.Set("sort", string(v.sort))
	}
	return withValues(path, q)
}

// sorted says for assistive technology how a column is sorted; "" for not at all.
func (v boxesView) sorted(column boxOrder) string {
	by, back := v.sort.column()
	switch {
	case by != column:
		return ""
	case back != (column == "box" || column == "policy"):
		return "ascending"
	}
	return "descending"
}

func (s *site) readBoxes(ctx context.Context, v boxesView) (boxesView, error) {
	all, err := s.Source.Boxes(ctx)
	if err != nil {
		return boxesView{}, fmt.Errorf("read boxes: %w", err)
	}
	v.all = len(all)
	for _, b := range all {
		v.total.Allowed += b.Counts.Allowed
		v.total.Redirected += b.Counts.Redirected
		v.total.Blocked += b.Counts.Blocked
		v.total.Leaks += b.Counts.Leaks
		v.active += b.Running
		if strings.Contains(strings.ToLower(b.Name), strings.ToLower(v.name)) {
			v.boxes = append(v.boxes, b)
		}
	}
	v.found = len(v.boxes)
	slices.SortStableFunc(v.boxes, func(a, b core.BoxView) int { return v.sort.compare(&a, &b) })
	if len(v.boxes) > maxBoxes {
		v.boxes = v.boxes[:maxBoxes]
	}
	return v, nil
}

// readBoxesView reads what an address asks for.
func readBoxesView(r *http.Request) boxesView {
	q := r.URL.Query()
	name, _ := cut(q.Get("name"), core.MaxBoxName)
	return boxesView{name: name, sort: readOrder(q.Get("sort"))}
}

func (s *site) boxes(w http.ResponseWriter, r *http.Request) {
	asked := readBoxesView(r)
	v, err := s.readBoxes(r.Context(), asked)
	if err != nil {
		s.failErr(w, r, err, "")
		return
	}
	s.render(w, r, http.StatusOK, boxesPage(s.member(r, "Boxes", asked.url("/live")), v))
}

func (s *site) boxesLive(w http.ResponseWriter, r *http.Request) {
	asked := readBoxesView(r)
	s.stream(w, r, live{gap: boxesGap, now: func(ctx context.Context) ([]part, error) {
		v, err := s.readBoxes(ctx, asked)
		if err != nil {
			return nil, err
		}
		return []part{{"boxes", boxesTable(v)}}, nil
	}})
}
