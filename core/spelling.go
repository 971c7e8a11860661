package core

import "strings"

// nearest returns the one of known that word was most likely meant to be, "" when none is near.
func nearest(word string, known []string) string {
	best, least := "", 1+min(len(word)/3, 3) // that many slips and no more
	for _, k := range known {
		if d := slips(strings.ToLower(word), k); d < least || d == least && best == "" {
			best, least = k, d
		}
	}
	return best
}

// slips counts the letters that are to be put in, left out, replaced or exchanged with
// their neighbour to make a of b (the distance of Damerau and Levenshtein). Of words
// longer than 64 bytes it says that they are far apart.
func slips(a, b string) int {
	const most = 64
	if len(a) > most || len(b) > most {
		return most
	}
	var rows [3][most + 1]int
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := range len(a) {
		now, before, last := &rows[(i+1)%3], &rows[i%3], &rows[(i+2)%3]
		now[0] = i + 1
		for j := range len(b) {
			d := before[j]
			if a[i] != b[j] {
				d++
			}
			d = min(d, before[j+1]+1, now[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d = min(d, last[j-1]+1)
			}
			now[j+1] = d
		}
	}
	return rows[len(a)%3][len(b)]
}
