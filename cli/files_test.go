package cli

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// dashboardUser is a browser without scripts, signed in to the daemon of a test.
type dashboardUser struct {
	*testing.T
	http.Client
	base string
}

func signInTo(t *testing.T, link string) *dashboardUser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	u := &dashboardUser{T: t, Client: http.Client{Jar: jar}, base: link[:strings.Index(link, "/sign-in")]}
	u.get(link[len(u.base):])
	return u
}

func (u *dashboardUser) page(r *http.Response, err error) string {
	u.Helper()
	if err != nil {
		u.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode >= 400 && r.StatusCode != http.StatusConflict {
		u.Fatalf("%s %s: %s, %v\n%s", r.Request.Method, r.Request.URL, r.Status, err, b)
	}
	return string(b)
}

func (u *dashboardUser) get(path string) string {
	u.Helper()
	return u.page(u.Get(u.base + path))
}

func (u *dashboardUser) post(path string, kv ...string) string {
	u.Helper()
	v := url.Values{"back": {"/boxes/review/files"}}
	for i := 0; i < len(kv); i += 2 {
		v.Add(kv[i], kv[i+1])
	}
	return u.page(u.PostForm(u.base+"/boxes/review/files"+path, v))
}

func (u *dashboardUser) has(page string, wants ...string) {
	u.Helper()
	for _, w := range wants {
		if !strings.Contains(page, w) {
			u.Errorf("the page lacks %q\n%s", w, page)
		}
	}
}

// TestTheDashboardReviewsARealBox goes the whole way: a real program in a real box, the
// daemon's pages of what it changed, and the orders given there.
func TestTheDashboardReviewsARealBox(t *testing.T) {
	t.Setenv("SANDGLASS_HOME", filepath.Join(t.TempDir(), "home"))
	t.Setenv("LC_ALL", "C")
	work := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	real := func(name string) string {
		b, err := os.ReadFile(filepath.Join(work, name))
		if err != nil {
			return ""
		}
		return string(b)
	}
	sandglass := func(args ...string) string {
		t.Helper()
		c := exec.Command("sandglass", args...)
		c.Dir = work
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("sandglass %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	t.Cleanup(func() {
		sandglass("box", "rm", "review") // which removes what RemoveAll may not
		sandglass("stop")
	})
	put("edited", "one\ntwo\n")
	put("gone", "x\n")
	put("kept", "real\n")
	sandglass("run", "--box", "review", "--", "sh", "-c", `printf 'one\n2\n' >edited; rm gone; mkdir -p a/b; echo new >a/b/c; printf 'raw\000' >bin; ln -s /etc/passwd link; echo box >kept`)
	link := regexp.MustCompile(`http://\S+/sign-in\?token=\S+`).FindString(sandglass("link"))
	if link == "" {
		t.Fatal("there is no link to sign in with")
	}
	u := signInTo(t, link)
	at := func(name string) string { return filepath.Join(work, name) }
	one := func(name string) string {
		return u.get("/boxes/review/files?" + url.Values{"path": {at(name)}}.Encode())
	}

	u.has(u.get("/boxes/review"), "Changed files", "Review")
	tree := u.get("/boxes/review/files")
	u.has(tree, ">edited<", ">c<", "→ <bdi>/etc/passwd", `value="`+url.PathEscape(at("gone"))+`"`)
	u.has(one("edited"), `class="minus"`, `class="plus"`, "modified")
	u.has(one("bin"), "Binary. The first bytes", "72 61 77 00")
	u.has(one("link"), "/etc/passwd", "symlink")
	u.has(one("gone"), "deleted")

	u.has(u.post("/snapshot", "name", "first"), "Snapshot first was taken.", "first")

	put("kept", "changed outside\n") // since the box changed it
	u.has(u.post("/plan", "do", "commit-all"), "Commit all changes", "1 conflict", "Force")
	u.has(u.post("/commit", "all", "1"), "Nothing was committed")
	if real("edited") != "one\ntwo\n" || real("gone") != "x\n" {
		t.Error("a commit that was refused has changed something")
	}
	u.has(u.post("/commit", "p", url.PathEscape(at("edited")), "p", url.PathEscape(at("a"))), "Committed to the real system: 3 added, 1 modified.")
	if real("edited") != "one\n2\n" || real("a/b/c") != "new\n" || real("gone") != "x\n" {
		t.Errorf("committed: edited %q, a/b/c %q, gone %q", real("edited"), real("a/b/c"), real("gone"))
	}
	u.has(one("edited"), "The box changes nothing here")
	u.has(u.post("/discard", "p", url.PathEscape(at("gone"))), "Discarded: 1 deleted.")
	u.has(u.post("/commit", "p", url.PathEscape(at("kept")), "force", "1"), "Committed to the real system: 1 modified.")
	if real("kept") != "box\n" {
		t.Errorf("by force: %q", real("kept"))
	}
	u.has(u.post("/rollback", "snapshot", "first"), "Roll back to snapshot first?", "The real system stays as it is")
}

// TestTheDashboardLeavesARunningBoxAlone: while a session runs, nothing is taken from under it.
func TestTheDashboardLeavesARunningBoxAlone(t *testing.T) {
	t.Setenv("SANDGLASS_HOME", filepath.Join(t.TempDir(), "home"))
	work := t.TempDir()
	run := exec.Command("sandglass", "run", "--box", "review", "--", "sh", "-c", "echo x >new; echo ready; read end")
	run.Dir = work
	in, err := run.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = run.Wait() // the program ends by an end of its input, which is no success
		for _, args := range [][]string{{"box", "rm", "review"}, {"stop"}} {
			if out, err := exec.Command("sandglass", args...).CombinedOutput(); err != nil {
				t.Errorf("%q: %v\n%s", args, err, out)
			}
		}
	})
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	link, err := exec.Command("sandglass", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	u := signInTo(t, regexp.MustCompile(`http://\S+/sign-in\?token=\S+`).FindString(string(link)))
	u.has(u.get("/boxes/review/files"), "1 session runs", ">new<")
	u.has(u.post("/plan", "do", "discard-all"), "1 session runs in this box: end it first")
	u.has(u.post("/discard", "all", "1"), "discard: ")
	u.has(u.get("/boxes/review/files"), ">new<")
}
