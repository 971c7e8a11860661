package web

import (
	"bytes"
	"image"
	"image/color"
	"image/gif"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandglass/sandglass/core"
)

const filesOf = "/boxes/default/files"

func pathPage(p string) string { return filesOf + "?" + url.Values{"path": {p}}.Encode() }

func TestTheTreeOfChangesShowsEveryKind(t *testing.T) {
	srv := holding(start(t, demo()), installed())
	page := body(t, do(t, srv, http.MethodGet, filesOf, nil))
	for _, want := range []string{
		">home/ann<", ">usr/local/bin<", // folders that hold one each are one line
		"More of <bdi>left-pad", "mode 0644 → 4755", "→ <bdi>/etc/shadow", "57\u202fB → 114\u202fB",
		">added<", ">modified<", ">deleted<", "autostart", "shell profile",
		`value="%2Fhome%2Fann%2F.bashrc"`, "Commit selected", "Take snapshot", "before-npm",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if page := body(t, do(t, srv, http.MethodGet, "/boxes/default", nil)); !strings.Contains(page, `id="files"`) || !strings.Contains(page, "66 added") {
		t.Error("the box's page does not count its changed files")
	}
	if page := body(t, do(t, srv, http.MethodGet, "/boxes/build/files", nil)); !strings.Contains(page, "sandglass run --box build") {
		t.Error("a box without changes does not say what makes some")
	}
}

func TestALargeTreeIsPagedThroughWhole(t *testing.T) {
	const files = 5000
	srv := holding(start(t, demo()), huge(files))
	seen, pages := map[string]bool{}, 0
	for dir := range files / 1000 {
		at := filesOf + "?" + url.Values{"dir": {"/srv/data/00" + string(rune('0'+dir))}}.Encode()
		for at != "" {
			pages++
			page := body(t, do(t, srv, http.MethodGet, at, nil))
			if len(page) > 400<<10 {
				t.Fatalf("a page of %d bytes", len(page))
			}
			for _, m := range strings.Split(page, `name="p" value="`)[1:] {
				seen[m[:strings.IndexByte(m, '"')]] = true
			}
			_, rest, more := strings.Cut(page, `<li class="rest"><a class="row" href="`)
			if at = ""; more {
				at = strings.ReplaceAll(rest[:strings.IndexByte(rest, '"')], "&amp;", "&")
			}
		}
	}
	if len(seen) != files || pages != files/levelRows {
		t.Errorf("%d of %d files on %d pages", len(seen), files, pages)
	}
}

func TestFilesAreShownByTheirContent(t *testing.T) {
	h := installed()
	h.box["/tmp/evil.svg"] = file("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>\n", 0o644)
	h.box["/tmp/late"] = file(strings.Repeat("text\n", 4000)+"\x00", 0o644)
	srv := holding(start(t, demo()), h)
	for _, c := range []struct {
		path string
		want []string
		not  []string
	}{
		{"/home/ann/.bashrc", []string{`class="plus"`, `<span class="esc">\x1b</span>[2Knothing`, `<span class="esc">\u{202e}</span>`, `<span class="esc">\t\x20</span>`, "shell profile"}, []string{"\x1b", "\u202e"}},
		{"/home/ann/project/logo.png", []string{`<img src="/boxes/default/files/image?own=1&amp;path=`}, nil},
		{"/usr/local/bin/tool", []string{"The first difference is at byte 5\u202f321", "<mark>90</mark>"}, nil},
		{"/home/ann/project/deploy.sh", []string{"The content is the same", "4755 rwsr-xr-x", `user.note`}, nil},
		{"/home/ann/project/current", []string{"releases/1", "/etc/shadow"}, nil},
		{"/home/ann/project/old.log", []string{`class="minus"`, "deleted"}, nil},
		{"/tmp/evil.svg", []string{"&lt;svg", "&lt;script&gt;"}, []string{"<script>alert", "<img"}},
		{"/home/ann/.wine/user.reg", []string{"keyvalues", "win7", "&lt;win10&gt;"}, []string{"WINE REGISTRY"}},
		{"/etc/motd", []string{"The box changes nothing here"}, []string{"Commit"}},
	} {
		r := do(t, srv, http.MethodGet, pathPage(c.path), nil)
		page := body(t, r)
		for _, w := range c.want {
			if !strings.Contains(page, w) {
				t.Errorf("%s lacks %q", c.path, w)
			}
		}
		for _, w := range c.not {
			if strings.Contains(page, w) {
				t.Errorf("%s has %q", c.path, w)
			}
		}
	}
	for _, p := range hostile {
		r := do(t, srv, http.MethodGet, pathPage(p), nil)
		if body(t, r); r.StatusCode != 200 && r.StatusCode != 400 {
			t.Errorf("%q: %s", p, r.Status)
		}
	}
}

func TestImagesAreImagesAlone(t *testing.T) {
	h := installed()
	var huge bytes.Buffer
	_ = gif.Encode(&huge, image.NewPaletted(image.Rect(0, 0, 1, 1), color.Palette{color.Black}), nil)
	bomb := huge.Bytes()
	copy(bomb[6:], "\xff\xff\xff\xff") // as wide and as high as can be
	h.box["/tmp/bomb.gif"] = file(string(bomb), 0o644)
	h.box["/tmp/page.png"] = file("<html><script>alert(1)</script>", 0o644)
	h.real["/etc/shadow"] = file(picture1(4, 4, color.White), 0o600)
	srv := holding(start(t, demo()), h)
	at := func(p, own string) string {
		return filesOf + "/image?" + url.Values{"path": {p}, "own": {own}}.Encode()
	}
	for _, c := range []struct {
		name, path string
		status     int
	}{
		{"the box's", at("/home/ann/project/logo.png", "1"), 200},
		{"the real one", at("/home/ann/project/logo.png", ""), 200},
		{"a page", at("/tmp/page.png", "1"), 415},
		{"one that is too large to be decoded", at("/tmp/bomb.gif", "1"), 413},
		{"a file that the box did not change", at("/etc/shadow", ""), 404},
		{"no path", at("../x", "1"), 404},
	} {
		r := do(t, srv, http.MethodGet, c.path, nil)
		if r.StatusCode != c.status || r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %s, %q", c.name, r.Status, r.Header)
		}
		if csp := r.Header.Get("Content-Security-Policy"); c.status == 200 && (csp != "sandbox; default-src 'none'" || r.Header.Get("Content-Type") != "image/png") {
			t.Errorf("%s: policy %q, type %q", c.name, csp, r.Header.Get("Content-Type"))
		}
	}
}

func TestWebPSizesAreRead(t *testing.T) {
	riff := func(s string) []byte { return []byte("RIFF\x00\x00\x00\x00WEBP" + s) }
	for _, c := range []struct {
		data []byte
		want int64
	}{
		{riff("VP8X\x0a\x00\x00\x00\x00\x00\x00\x00\x0f\x27\x00\x8f\x01\x00"), 10000 * 400},
		{riff("VP8L\x00\x00\x00\x00\x2f\x63\xc0\x18\x00\x00\x00\x00\x00\x00\x00"), 100 * 100},
		{riff("VP8 \x00\x00\x00\x00\x00\x00\x00\x9d\x01\x2a\x64\x00\xc8\x00"), 100 * 200},
		{riff("VP8?\x00\x00\x00\x00\x00\x00\x00\x9d\x01\x2a\x64\x00\xc8\x00"), 1 << 62},
		{[]byte("RIFF"), 1 << 62},
	} {
		if got := webpPixels(c.data); got != c.want {
			t.Errorf("%q: %d pixels, want %d", c.data, got, c.want)
		}
	}
}

func TestChangesAreCommittedAndDiscardedAfterAQuestion(t *testing.T) {
	h := installed()
	h.box["/tmp/\xff\n"] = file("x", 0o644)
	srv := holding(start(t, demo()), h)
	post := func(what string, kv ...string) (*http.Response, string) {
		r := do(t, srv, http.MethodPost, filesOf+"/"+what+form(append(kv, "back", filesOf)...), nil)
		if r.StatusCode == http.StatusSeeOther {
			if to := r.Header.Get("Location"); to != filesOf {
				t.Errorf("%s %q leads to %q", what, kv, to)
			}
			return r, body(t, do(t, srv, http.MethodGet, r.Header.Get("Location"), nil))
		}
		return r, body(t, r)
	}
	conflict := []FileConflict{{"/home/ann/.bashrc", "changed outside", false}}
	for _, c := range []struct {
		name, what  string
		fields      []string
		conflicts   []FileConflict
		running     int
		status      int
		ordered     []string
		says, never string
	}{
		{"the plan", "plan", []string{"do", "commit", "p", choice("/home/ann/project/node_modules")}, nil, 0, 200, nil, "Commit 62 changes?", ""},
		{"the plan of all", "plan", []string{"do", "discard-all"}, nil, 0, 200, nil, "Discard all changes: 75 changes?", ""},
		{"nothing selected", "plan", []string{"do", "commit"}, nil, 0, 303, nil, "nothing was selected", ""},
		{"no such order", "plan", []string{"do", "burn-all"}, nil, 0, 303, nil, "no such order", ""},
		{"a path with detours", "plan", []string{"do", "commit", "p", "%2Fetc%2F..%2Fx"}, nil, 0, 303, nil, "cannot be read", ""},
		{"while a session runs", "plan", []string{"do", "commit-all"}, nil, 1, 200, nil, "1 session runs in this box: end it first", `<button class="primary">`},
		{"the plan of a conflict", "plan", []string{"do", "commit-all"}, conflict, 0, 200, nil, "Force: the box", `<button class="primary">`},
		{"a conflict that cannot be forced", "plan", []string{"do", "commit-all"}, []FileConflict{{"/home/ann/.bashrc", "a mount point", true}}, 0, 200, nil, "a mount point", `name="force"`},
		{"a conflict", "commit", []string{"all", "1"}, conflict, 0, 409, []string{"commit [] force=false"}, "Nothing was committed", ""},
		{"a commit of nothing", "commit", nil, nil, 0, 303, nil, "nothing was selected", ""},
		{"a commit of any bytes", "commit", []string{"p", choice("/tmp/\xff\n")}, nil, 0, 303, []string{`commit ["/tmp/\xff\n"] force=false`}, "Committed to the real system: 1 added.", ""},
		{"by force", "commit", []string{"p", choice("/home/ann/.bashrc"), "force", "1"}, conflict, 0, 303, []string{`commit ["/home/ann/.bashrc"] force=true`}, "Committed to the real system: 1 modified.", ""},
		{"a discard", "discard", []string{"p", choice("/home/ann/project/old.log")}, nil, 0, 303, []string{`discard ["/home/ann/project/old.log"]`}, "Discarded: 1 deleted.", ""},
		{"a snapshot", "snapshot", []string{"name", "one"}, nil, 0, 303, []string{"snapshot one"}, "Snapshot one was taken.", ""},
		{"a snapshot of a bad name", "snapshot", []string{"name", "../x"}, nil, 0, 303, []string{"snapshot ../x"}, "bad snapshot name", ""},
		{"a question before a rollback", "rollback", []string{"snapshot", "before-npm"}, nil, 0, 200, []string{"rollback before-npm dry=true force=false"}, "Roll back to snapshot before-npm?", ""},
		{"a rollback to nowhere", "rollback", []string{"time", "yesterday"}, nil, 0, 303, nil, "no moment was named", ""},
		{"a rollback", "rollback", []string{"time", "2026-01-02T03:04:05Z", "sure", "1"}, nil, 0, 303, []string{"rollback 2026-01-02T03:04:05Z dry=false force=false"}, "The box is what it was", ""},
		{"a rollback that would lose something", "rollback", []string{"snapshot", "one", "sure", "1"}, conflict, 0, 409,
			[]string{"rollback one dry=false force=false", "rollback one dry=true force=false"}, "Force: leave these", ""},
	} {
		h.mu.Lock()
		h.conflicts, h.running = c.conflicts, c.running
		h.mu.Unlock()
		r, page := post(c.what, c.fields...)
		if got := h.ordered(); r.StatusCode != c.status || !slices.Equal(got, c.ordered) {
			t.Errorf("%s: %s, ordered %q, want %d %q", c.name, r.Status, got, c.status, c.ordered)
		}
		if !strings.Contains(page, c.says) {
			t.Errorf("%s: the page does not say %q", c.name, c.says)
		}
		if c.never != "" && strings.Contains(page, c.never) {
			t.Errorf("%s: the page has %q", c.name, c.never)
		}
	}
}

func TestFilesAreNobodyElses(t *testing.T) {
	h := installed()
	srv := holding(start(t, demo()), h)
	for _, what := range []string{"plan", "commit", "discard", "snapshot", "rollback"} {
		path := filesOf + "/" + what
		send := path + form("do", "commit-all", "all", "1", "sure", "1", "snapshot", "before-npm", "back", "/")
		for _, c := range []struct {
			name, method, path string
			headers            map[string]string
			status             int
		}{
			{"nobody who is signed in", "POST", send, map[string]string{"Cookie": "-"}, 401},
			{"another site", "POST", send, map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
			{"another origin in an old browser", "POST", send, map[string]string{"Origin": "http://evil.example"}, 403},
			{"a link", "GET", path, nil, 405},
			{"another name of this machine", "POST", send, map[string]string{"Host": "evil.example"}, 421},
			{"a box that is not there", "POST", strings.Replace(send, "default", "nowhere", 1), nil, 404},
		} {
			if r := do(t, srv, c.method, c.path, c.headers); r.StatusCode != c.status {
				t.Errorf("%s: %s by %s, want %d", what, r.Status, c.name, c.status)
			}
		}
	}
	if got := h.ordered(); got != nil {
		t.Errorf("orders were taken: %q", got)
	}
	for _, path := range []string{filesOf, pathPage("/home/ann/.bashrc"), filesOf + "/image?path=/home/ann/project/logo.png"} {
		if r := do(t, srv, http.MethodGet, path, map[string]string{"Cookie": "-"}); r.StatusCode != 401 {
			t.Errorf("%s: %s for nobody", path, r.Status)
		}
	}
}

func TestFilesAreShownAsTheyWere(t *testing.T) {
	m, h := demo(), installed()
	h.atLimit = time.Now()
	m.add(core.Operation{Seq: 7001, Time: h.atLimit, Box: "default", Session: demoSession, Proc: "6", PID: 6, Exe: "/usr/bin/node", Surface: core.FilesWrite, Action: core.ActWrite,
		Target: "/home/ann/.bashrc", Verdict: core.Redirected, Detail: core.Detail{"kept": "57"}})
	m.add(core.Operation{Seq: 7002, Time: h.atLimit.Add(1), Box: "default", Session: demoSession, Surface: core.FilesWrite, Action: core.ActWrite,
		Target: "/home/ann/.bashrc", Verdict: core.Redirected, Detail: core.Detail{"kept": "no"}})
	srv := holding(start(t, m), h)
	page := body(t, do(t, srv, http.MethodGet, pathPage("/home/ann/.bashrc"), nil))
	_, rest, found := strings.Cut(page, `<ol class="versions"><li><a class="row" href="`)
	if !found || strings.Count(page, "before write") != 1 {
		t.Fatalf("the page lists no version that was kept, or one that was not")
	}
	before := strings.ReplaceAll(rest[:strings.IndexByte(rest, '"')], "&amp;", "&")
	for _, at := range []string{before, pathPage("/home/ann/.bashrc") + "&at=7001&session=" + string(demoSession)} {
		page = body(t, do(t, srv, http.MethodGet, at, nil))
		if !strings.Contains(page, "The box had changed nothing here") || !strings.Contains(page, "As it was at") || strings.Contains(page, `value="discard"`) {
			t.Errorf("%s does not show the file as it was", at)
		}
	}
	for _, at := range []string{"yesterday", "99999999", "2026-13-01T00:00"} {
		if r := do(t, srv, http.MethodGet, filesOf+"?at="+at, nil); r.StatusCode != 400 {
			t.Errorf("at=%s: %s", at, r.Status)
		}
	}
}

func TestWhatOthersDidToABoxIsAWarning(t *testing.T) {
	m := demo()
	m.add(core.Operation{Seq: 7001, Time: time.Now(), Box: "default", Session: demoSession, Surface: core.OutsideWrite, Action: core.ActWrite, Target: "/home/ann/.bashrc", Verdict: core.Allowed})
	srv := holding(start(t, m), installed())
	for _, path := range []string{filesOf, "/boxes/default"} {
		if page := body(t, do(t, srv, http.MethodGet, path, nil)); !strings.Contains(page, "1 operation from outside") {
			t.Errorf("%s does not warn", path)
		}
	}
}

func TestABoxThatCannotBeReadSaysSo(t *testing.T) {
	h := installed()
	h.err = core.Hint(core.ErrNotFound, "a <hint>")
	srv := holding(start(t, demo()), h)
	if page := body(t, do(t, srv, http.MethodGet, "/boxes/default", nil)); !strings.Contains(page, "a &lt;hint&gt;") || !strings.Contains(page, "Operations") {
		t.Error("the box's page does not say it, or nothing else")
	}
	h.err = errTorn
	if r := do(t, srv, http.MethodGet, filesOf, nil); r.StatusCode != 503 || !strings.Contains(body(t, r), "layers.json is torn") {
		t.Errorf("%s", r.Status)
	}
}

// FuzzParseDiff: a diff is made of what a box wrote.
func FuzzParseDiff(f *testing.F) {
	f.Add([]byte("--- a\n+++ b\n@@ -1,2 +1,3 @@ func\n x\n-y\n+z\n\\ No newline at end of file\n"))
	f.Add([]byte("@@ -\n@@ +\n@@ @@"))
	f.Fuzz(func(t *testing.T, text []byte) {
		lines, _ := parseDiff(text)
		if len(lines) > diffLines {
			t.Errorf("%d lines", len(lines))
		}
		for _, l := range lines {
			if len(l.text) > max(lineBytes, len(text)) || !strings.ContainsRune(" +-@\\", rune(l.kind)) {
				t.Errorf("%+v", l)
			}
		}
	})
}
