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
	all    int    // boxes there are
	found  int    // boxes whose name matches
	total  core.Counts
	active int // running sessions
}

func (s *site) readBoxes(ctx context.Context, name string) (boxesView, error) {
	all, err := s.Source.Boxes(ctx)
	if err != nil {
		return boxesView{}, fmt.Errorf("read boxes: %w", err)
	}
	v := boxesView{name: name, all: len(all)}
	for _, b := range all {
		v.total.Allowed += b.Counts.Allowed
		v.total.Redirected += b.Counts.Redirected
		v.total.Blocked += b.Counts.Blocked
		v.total.Leaks += b.Counts.Leaks
		v.active += b.Running
		if strings.Contains(strings.ToLower(b.Name), strings.ToLower(name)) {
			v.boxes = append(v.boxes, b)
		}
	}
	v.found = len(v.boxes)
	// What runs comes first, then what ran last; the order does not change with every
	// operation of two boxes that both run.
	slices.SortStableFunc(v.boxes, func(a, b core.BoxView) int {
		if c := cmp.Compare(min(b.Running, 1), min(a.Running, 1)); c != 0 {
			return c
		}
		if a.Running == 0 {
			if c := b.LastUse.Compare(a.LastUse); c != 0 {
				return c
			}
		}
		return cmp.Compare(a.Name, b.Name)
	})
	if len(v.boxes) > maxBoxes {
		v.boxes = v.boxes[:maxBoxes]
	}
	return v, nil
}

func (s *site) boxes(w http.ResponseWriter, r *http.Request) {
	name, _ := cut(r.URL.Query().Get("name"), core.MaxBoxName)
	v, err := s.readBoxes(r.Context(), name)
	if err != nil {
		s.failErr(w, r, err, "")
		return
	}
	live := "/live"
	if name != "" {
		live += "?name=" + url.QueryEscape(name)
	}
	s.render(w, r, http.StatusOK, boxesPage(s.member(r, "Boxes", live), v))
}

func (s *site) boxesLive(w http.ResponseWriter, r *http.Request) {
	name, _ := cut(r.URL.Query().Get("name"), core.MaxBoxName)
	s.stream(w, r, live{gap: boxesGap, parts: func(ctx context.Context, _ bool) ([]part, error) {
		v, err := s.readBoxes(ctx, name)
		if err != nil {
			return nil, err
		}
		return []part{{"boxes", boxesTable(v)}}, nil
	}})
}
