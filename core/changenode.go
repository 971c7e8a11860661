package core

// ChangeNode is one name in a directory, as a tree of changes shows it.
type ChangeNode struct {
	Name   string  // arbitrary bytes without a slash
	Change *Change // nil where the path itself is as the real one
	Inside bool    // the box holds something below it, which may or may not differ
}

// ChangeLevel is a directory of a tree of changes.
type ChangeLevel struct {
	Nodes []ChangeNode // by name
	More  bool         // there may be more after the last one
	After string       // the name to go on after
}
