package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver"
)

// boxQuestion is a question as `asks --json` gives it.
type boxQuestion struct {
	Box string `json:"box"`
	driver.Question
}

// questions lists what waits for an answer in all boxes, the one that has waited longest
// first. With an error it has those of the sessions that did answer.
func (h Home) questions() (qs []boxQuestion, err error) {
	names, err := h.BoxNames()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		found, e := driver.Questions(h.box(name))
		if e != nil {
			err = errors.Join(err, fmt.Errorf("box %s: %w", name, e))
		}
		for _, q := range found {
			qs = append(qs, boxQuestion{name, q})
		}
	}
	slices.SortStableFunc(qs, func(a, b boxQuestion) int { return a.Since.Compare(b.Since) })
	return qs, err
}

func newAsks(p *printer) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "asks [--json]",
		Short: "List the questions that wait for an answer",
		Long: `List the flows that are held until somebody says whether they may go on: the rule or the
policy of their box says "ask". No answer in time is a no.`,
		Args: noArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			h, err := OpenHome()
			if err != nil {
				return err
			}
			qs, err := h.questions()
			var rows [][]string
			for i := range qs {
				q := &qs[i]
				if asJSON {
					if jerr := p.JSON(q); jerr != nil {
						return jerr
					}
					continue
				}
				rows = append(rows, []string{q.ID, q.Box, escape(q.Proto), escape(q.Target), escape(core.Shorten(q.Name, maxCommand)), escape(core.Shorten(q.Exe, maxCommand)), strconv.Itoa(q.PID),
					max(0, time.Until(q.Until)).Round(time.Second).String()})
			}
			switch {
			case asJSON:
			case len(rows) > 0:
				p.Table([]string{"ASK", "BOX", "PROTO", "TO", "NAME", "PROGRAM", ">PID", ">TIME LEFT"}, rows)
			case p.errTTY && err == nil:
				p.Note("nothing waits for an answer")
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one line of JSON for each")
	return c
}

func newAnswer() *cobra.Command {
	return &cobra.Command{
		Use:   "answer ID allow|block",
		Short: "Answer a question",
		Long:  "Answer a question that `sandglass asks` lists, by its ID; where two sessions have the same, by\nSESSION/ID.",
		Args:  needArgs("the question's ID, or the answer", 2, 2),
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return completeQuestions(prefix)
			case 1:
				return completeWords("allow", "block")(c, args, prefix)
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if args[1] != "allow" && args[1] != "block" {
				return core.Hint(fmt.Errorf("answer: unknown answer %q", core.Shorten(args[1], 80)), "allow or block")
			}
			h, err := OpenHome()
			if err != nil {
				return err
			}
			q, err := h.questionNamed(args[0])
			if err != nil {
				return fmt.Errorf("answer: %w", err)
			}
			if err := driver.AskSession(h.box(q.Box), q.Session, driver.Order{Do: "answer", Ask: q.ID, Allow: args[1] == "allow"}); err != nil {
				return fmt.Errorf("answer %s: %w", q.ID, err)
			}
			return nil
		},
	}
}

// questionNamed finds the question that ID or SESSION/ID names.
func (h Home) questionNamed(text string) (q boxQuestion, err error) {
	session, id, both := strings.Cut(text, "/")
	if !both {
		session, id = "", text
	}
	qs, err := h.questions()
	qs = slices.DeleteFunc(qs, func(q boxQuestion) bool { return q.ID != id || both && string(q.Session) != session })
	switch {
	case len(qs) == 1:
		return qs[0], nil
	case len(qs) > 1:
		var names []string
		for _, q := range qs {
			names = append(names, string(q.Session)+"/"+q.ID)
		}
		return q, core.Hint(fmt.Errorf("%d questions are %q", len(qs), core.Shorten(id, 80)), "name it by its session: "+strings.Join(names, " or "))
	case err != nil:
		return q, err
	}
	return q, core.Hint(fmt.Errorf("question %q: %w", core.Shorten(text, 80), core.ErrNotFound), "`sandglass asks` lists what waits; what waited too long was blocked")
}

func completeQuestions(prefix string) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	h, err := OpenHome()
	if err != nil {
		return nil, none
	}
	qs, _ := h.questions()
	var out []string
	for _, q := range qs {
		if strings.HasPrefix(q.ID, prefix) {
			out = append(out, clean(q.ID)+"\t"+clean(baseName(q.Exe)+" to "+core.Shorten(q.Target, 80)))
		}
	}
	return out, none
}

// boxOrders has the sessions of boxes do what the dashboard asks for.
type boxOrders struct{ home Home }

// Cut implements [web.Orders].
func (b boxOrders) Cut(_ context.Context, box string, session core.SessionID, flow string) error {
	if session == "" {
		return b.home.order([]string{box}, "cut", driver.Order{Do: "cut"})
	}
	if err := b.home.checkBoxes([]string{box}); err != nil {
		return err
	}
	return b.home.cut(box, flowID{session, flow})
}

// Block implements [web.Orders].
func (b boxOrders) Block(_ context.Context, box, rule string) error {
	if _, err := core.ParseFlowRule(rule); err != nil {
		return err
	}
	return b.home.order([]string{box}, "set", driver.Order{Do: "rule", Rule: rule})
}
