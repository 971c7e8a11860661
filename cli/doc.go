// Package cli is the command line: it parses, calls the other packages, and prints.
//
// What comes in: arguments, the environment, the state folder ([Home]). What goes out:
// text for people, NDJSON for programs, and an exit code. The daemon's life is here too
// (serve.go): it only connects the bus, the projections and the dashboard to one another.
//
// The one idea to know: there is one door for each thing a command does to the world.
// Everything that is printed passes the [printer] (what a box controls cannot move the
// cursor), every exit code comes from exit.go, every file of the state folder is named in
// home.go.
package cli
