// Command attacks tries to get out of a box, in each of the ways of the table in attacks.go:
// first without a box, against something made for the purpose, to show that the attack
// works here; then in a box with the attack's surface set to block, redirect and allow in
// turn, as far as a policy can. Outside must be unharmed, or reached, as the policy says, and
// the try must be on record: with its surface, action, target and verdict.
//
// It uses the built binary as a person does. `make attacks` prints the matrix; `make test`
// runs it too.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
)

func main() {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	binary := flag.String("sandglass", "./sandglass", "the binary to test")
	only := flag.String("only", "", "only rows and names that contain this")
	asJSON := flag.Bool("json", false, "a line of JSON for each attack")
	flag.Parse()
	path, err := filepath.Abs(*binary)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacks:", err, "(make build makes it)")
		os.Exit(2)
	}
	fi, err := os.Stderr.Stat()
	tty := err == nil && fi.Mode()&os.ModeCharDevice != 0
	rows, err := runAll(path, *only, func(done, all int, r row) {
		if tty {
			fmt.Fprintf(os.Stderr, "\r\x1b[K%d/%d %s %s", done, all, r.Row, r.Name)
		}
	})
	if tty {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "attacks:", err)
		os.Exit(2)
	}
	bad := 0
	for _, r := range rows {
		bad += len(r.Wrong)
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		for _, r := range rows {
			e.Encode(r)
		}
	} else {
		print(rows)
	}
	if bad > 0 {
		os.Exit(1)
	}
}

func print(rows []row) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROW\tATTACK\tSURFACE\tWITHOUT A BOX\tBLOCK\tREDIRECT\tALLOW")
	wrong := 0
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Row, r.Name, r.Surface, r.Control, r.Cells["block"], r.Cells["redirect"], r.Cells["allow"])
		wrong += len(r.Wrong)
	}
	w.Flush()
	for _, r := range rows {
		for _, s := range r.Wrong {
			fmt.Printf("WRONG %s %s: %s\n", r.Row, r.Name, s)
		}
	}
	fmt.Printf("\n%d attacks; held: outside unharmed, the try on record. reached: as the policy said, recorded as a leak.\n", len(rows))
	if wrong == 0 {
		fmt.Println("all as the policy says")
	}
}

// runAll runs the attacks whose row or name contains only, two at a time.
func runAll(binary, only string, progress func(done, all int, r row)) ([]row, error) {
	l, err := newLab(binary)
	if err != nil {
		return nil, err
	}
	defer l.close()
	var chosen []attack
	for _, a := range table() {
		if strings.Contains(a.Row+" "+a.Name, only) {
			chosen = append(chosen, a)
		}
	}
	rows := make([]row, len(chosen))
	work := make(chan int)
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range 2 {
		wg.Go(func() {
			for i := range work {
				rows[i] = l.attack(i, chosen[i])
				mu.Lock()
				done++
				progress(done, len(chosen), rows[i])
				mu.Unlock()
			}
		})
	}
	for i := range chosen {
		work <- i
	}
	close(work)
	wg.Wait()
	log, err := l.log()
	if err != nil {
		return nil, err
	}
	for i := range rows {
		rows[i].settle(log)
	}
	return rows, nil
}
