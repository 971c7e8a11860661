package core

import "fmt"

// Verdict says what became of an operation. The zero value is the safe one.
type Verdict uint8

// The verdicts, in the order of their numbers in the log. The numbers are for ever.
const (
	Blocked    Verdict = iota // refused: the box got an errno
	Allowed                   // touches the real system
	Redirected                // happens in the box instead
)

var verdictNames = [...]string{"blocked", "allowed", "redirected"}

// Verdicts lists all verdicts in the order of their numbers.
func Verdicts() []Verdict { return []Verdict{Blocked, Allowed, Redirected} }

// String returns the verdict's name in JSON, in queries and on pages.
func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return fmt.Sprintf("verdict(%d)", uint8(v))
}

// ParseVerdict is the inverse of [Verdict.String].
func ParseVerdict(s string) (Verdict, error) {
	for i, n := range verdictNames {
		if n == s {
			return Verdict(i), nil
		}
	}
	return Blocked, fmt.Errorf("unknown verdict %q (blocked, allowed, redirected)", s)
}

// MarshalText implements encoding.TextMarshaler.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *Verdict) UnmarshalText(b []byte) (err error) { *v, err = ParseVerdict(string(b)); return err }

// Outcome says how much the supervisor knows about the end of an operation. The
// supervisor never sees the result of a call that it lets the kernel continue, so
// it never claims one.
type Outcome uint8

// The outcomes, in the order of their numbers in the log. The numbers are for ever.
const (
	Attempted Outcome = iota // the kernel was left to do it; the result was not seen
	Refused                  // the supervisor or the filter answered with an errno
	Performed                // the supervisor did it, or saw it done
)

var outcomeNames = [...]string{"attempted", "refused", "performed"}

// String returns the outcome's name in JSON and in queries.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// ParseOutcome is the inverse of [Outcome.String].
func ParseOutcome(s string) (Outcome, error) {
	for i, n := range outcomeNames {
		if n == s {
			return Outcome(i), nil
		}
	}
	return Attempted, fmt.Errorf("unknown outcome %q (attempted, refused, performed)", s)
}

// MarshalText implements encoding.TextMarshaler.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Outcome) UnmarshalText(b []byte) (err error) { *o, err = ParseOutcome(string(b)); return err }
