package query

import (
	"slices"
	"strings"
)

// Complete lists what a query that begins with prefix could go on as, for a shell and
// for a search box: prefix with its last word completed to a field or to a value of
// one. A field that needs a value ends with ':' or '.'. It is never long.
func Complete(prefix string) []string {
	if len(prefix) > MaxLength {
		return nil
	}
	start, quoted := lastWord(prefix)
	if quoted {
		return nil
	}
	for start < len(prefix) && prefix[start] == '-' {
		start++
	}
	head, word := prefix[:start], prefix[start:]
	var all []string
	if n := strings.IndexAny(word, ":=<>"); n < 0 {
		for _, d := range fields {
			switch {
			case !strings.HasPrefix(d.Name+":", word) && d.Name != "detail.":
			case d.Name == "detail." && strings.HasPrefix(word, d.Name):
				for _, k := range d.Values {
					all = append(all, head+d.Name+k+":")
				}
			case d.Name == "detail.":
				all = append(all, head+d.Name)
			default:
				all = append(all, head+d.Name+":")
			}
		}
	} else {
		f, _, ok := fieldNamed(strings.TrimSuffix(word[:n], "!"))
		if !ok || f == Detail {
			return nil
		}
		// A list completes its last value.
		from := n + len(word[n:]) - len(strings.TrimLeft(word[n:], ":=<>"))
		from = max(from, strings.LastIndexByte(word, ',')+1)
		given := strings.Split(word[n+1:from], ",")
		for _, v := range valuesOf(f) {
			if !slices.Contains(given, v) {
				all = append(all, head+word[:from]+v)
			}
		}
	}
	return slices.DeleteFunc(all, func(s string) bool { return !strings.HasPrefix(s, prefix) })
}

// lastWord returns where the last word of s begins, and whether part of it is quoted:
// then it is not for us to complete.
func lastWord(s string) (start int, quoted bool) {
	open := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
			quoted = true
		case c == '"':
			open = !open
			quoted = true
		case !open && (isSpace(c) || c == '(' || c == ')'):
			start, quoted = i+1, false
		}
	}
	return start, quoted
}
