package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/sandglass/sandglass/core"
)

// The exit codes of sandglass. `run` returns its command's own code; 126 and 127 come from
// the driver, as a shell has them.
const (
	exitOK        = 0   // what was asked for was done
	exitNo        = 1   // the answer is no: `status` found no daemon, `doctor` found something missing
	exitSandglass = 125 // sandglass itself failed, or was asked for what does not exist
	exitSignal    = 128 // plus the number of the signal that ended it
)

// exitCode ends a command with a code and without a message: everything was said already.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// finish prints what went wrong, if anything did, and returns the process's exit code. It
// is the only place that turns an error into a code.
func finish(p *printer, err error) int {
	var code exitCode
	if errors.As(err, &code) {
		err = nil
	}
	if err == nil {
		if ferr := p.Flush(); ferr == nil {
			return int(code)
		} else {
			err = fmt.Errorf("write output: %w", ferr)
		}
	} else {
		p.Flush()
	}
	var sig *interrupted
	if errors.As(err, &sig) {
		return exitSignal + int(sig.signal)
	}
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	p.Error(err)
	return exitSandglass
}

// usage is an error in how a command was called; the hint names the help that would have told.
func usage(command string, err error) error {
	return core.Hint(err, fmt.Sprintf("`%s --help` shows how it is called", command))
}
