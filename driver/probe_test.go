package driver

import "testing"

func TestProbeFindsWhatTheOtherTestsNeed(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Probe(t.Context()) {
		seen[c.Name] = true
		if c.Needed && c.State != OK {
			t.Errorf("%s: %s: %s (%s)", c.Name, c.State, c.Why, c.Hint)
		}
	}
	for _, n := range []string{"machine", "a box", "writes are redirected", "every mount can be overlaid", "second wall (Landlock)"} {
		if !seen[n] {
			t.Errorf("no check of %q", n)
		}
	}
}
