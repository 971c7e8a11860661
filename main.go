// Sandglass runs any Linux program in a box, and records every operation of it.
package main

import (
	"os"

	"github.com/sandglass/sandglass/cli"
	"github.com/sandglass/sandglass/driver"
)

func main() {
	driver.Stage() // first: in a re-exec'd child it never returns
	os.Exit(cli.Main())
}
