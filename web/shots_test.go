package web

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/sandglass/sandglass/core"
)

// TestShots saves pictures of every page, to be looked at: SANDGLASS_SHOTS=dir. With
// SANDGLASS_SHOTS_OF=prefix only of some.
func TestShots(t *testing.T) {
	dir, only := os.Getenv("SANDGLASS_SHOTS"), os.Getenv("SANDGLASS_SHOTS_OF")
	if dir == "" {
		t.Skip("SANDGLASS_SHOTS names no folder")
	}
	full := start(t, demo())
	many := demo()
	for i := range 220 {
		b := many.boxes[1+i%3]
		b.Name = fmt.Sprintf("ci-%04d", i)
		many.boxes = append(many.boxes, b)
	}
	crowd := start(t, many)
	empty := start(t, &memory{})
	net := start(t, online())
	badly := online()
	for i, name := range hostile {
		badly.add(core.Operation{Seq: core.Seq(9000 + i), Time: time.Now(), Box: "default", Session: demoSession, Proc: "6", PID: 6, Exe: name, Surface: core.NetOut, Action: core.ActConnect, Target: name,
			Verdict: core.Allowed, Rule: name, Detail: core.Detail{"flow": fmt.Sprint(100 + i), "proto": name, "name": name, "alpn": name, "cert": name}})
		badly.add(core.Operation{Seq: core.Seq(9100 + i), Time: time.Now(), Box: "default", Session: demoSession, Surface: core.NetDNS, Action: core.ActResolve, Target: name, Detail: core.Detail{"type": name, "rcode": name}})
	}
	hostileNet := start(t, badly)
	nasty := installed()
	for _, name := range hostile {
		if cleanPath(name) {
			nasty.box[name] = file(name, 0o644)
		}
	}
	held := holding(start(t, online()), installed())
	heldBadly := holding(start(t, demo()), nasty)
	heldMuch := holding(start(t, demo()), huge(20_000))
	busy := installed()
	busy.running = 1
	heldBusy := holding(start(t, demo()), busy)
	clash := installed()
	clash.conflicts = []FileConflict{{"/home/ann/.bashrc", "the real file was changed at 10:15:30, after the box had changed it", false}, {"/home/ann/project/old.log", "the real file is gone", false}}
	conflict := holding(start(t, demo()), clash)
	torn := installed()
	torn.err = core.Hint(errors.New("read layers.json: unexpected end of JSON input"), "the record of the box's layers is damaged; its files are in layers/*/upper")
	heldTorn := holding(start(t, demo()), torn)
	onePath := func(p string) string { return "/boxes/default/files?" + url.Values{"path": {p}}.Encode() }
	session := string(demoSession)
	open := eval(`document.querySelector(".op-leak details").open = true`)
	for _, p := range []struct {
		name string
		srv  *httptest.Server
		path string
		do   step
	}{
		{"boxes", full, "/", nil},
		{"boxes-many", crowd, "/", nil},
		{"boxes-empty", empty, "/", nil},
		{"boxes-none-found", full, "/?name=zzz", nil},
		{"box", full, "/boxes/default", nil},
		{"box-open", full, "/boxes/default?session=" + session, open},
		{"box-blocked", full, "/boxes/default?q=verdict:blocked", nil},
		{"box-error", full, "/boxes/default?q=verdict:blocked+surface:files.*+or+verdict:maybe+exe:node", nil},
		{"box-nothing", full, "/boxes/default?q=verdict:blocked+nowhere", nil},
		{"network", net, "/boxes/default", nil},
		{"network-all", net, "/boxes/default/network", nil},
		{"network-hostile", hostileNet, "/boxes/default", nil},
		{"network-said", net, "/boxes/default", chromedp.Steps(chromedp.Click(chromedp.CSS("#network tr.open button")), see(`document.querySelector(".said")`))},
		{"box-no-ops", full, "/boxes/build", nil},
		{"box-syntax", full, "/boxes/default", chromedp.Click(chromedp.CSS(".syntax summary"))},
		{"box-files", held, "/boxes/default", nil},
		{"files", held, "/boxes/default/files", nil},
		{"files-chosen", held, "/boxes/default/files", chromedp.Steps(eval(`document.querySelectorAll(".pick input")[3].click()`), eval(`document.querySelectorAll("a.row.leaf")[2].focus()`))},
		{"files-dir", heldMuch, "/boxes/default/files?dir=/srv/data/007", nil},
		{"files-many", heldMuch, "/boxes/default/files", nil},
		{"files-hostile", heldBadly, "/boxes/default/files", nil},
		{"files-none", full, "/boxes/default/files", nil},
		{"files-running", heldBusy, "/boxes/default/files", nil},
		{"files-torn", heldTorn, "/boxes/default/files", nil},
		{"files-then", held, "/boxes/default/files?at=2026-01-02T03:04:05Z", nil},
		{"files-removed", full, "/boxes/old/files", nil},
		{"file-text", held, onePath("/home/ann/.bashrc"), nil},
		{"file-json", held, onePath("/home/ann/project/package.json"), nil},
		{"file-image", held, onePath("/home/ann/project/logo.png"), see(`[...document.images].every(i => i.complete && i.naturalWidth === 320)`)},
		{"file-binary", held, onePath("/usr/local/bin/tool"), nil},
		{"file-settings", held, onePath("/home/ann/.wine/user.reg"), nil},
		{"file-mode", held, onePath("/home/ann/project/deploy.sh"), nil},
		{"file-link", held, onePath("/home/ann/project/current"), nil},
		{"file-gone", held, onePath("/home/ann/project/old.log"), nil},
		{"file-same", held, onePath("/etc/motd"), nil},
		{"file-hostile", heldBadly, onePath(hostile[8]), nil},
		{"file-escapes", heldBadly, onePath(hostile[3]), nil},
		{"plan-commit", held, "/boxes/default/files", press("commit-all")},
		{"plan-discard", held, "/boxes/default/files", press("discard-all")},
		{"plan-conflict", conflict, "/boxes/default/files", press("commit-all")},
		{"plan-nothing", held, "/boxes/default/files", chromedp.Steps(chromedp.Click(chromedp.CSS(`[name=do][value=commit]`)), see(`document.querySelector(".said")`))},
		{"not-found", full, "/boxes/nowhere", nil},
		{"sign-in", full, "/sign-in?token=wrong", nil},
	} {
		if !strings.HasPrefix(p.name, only) {
			continue
		}
		for _, theme := range []string{"light", "dark"} {
			for _, width := range []int64{1440, 1024, 390} {
				if (p.do == nil || only == "" && strings.HasPrefix(p.name, "file")) && theme == "dark" && width == 1024 {
					continue
				}
				tab := browse(t, p.srv)
				tab.run(t, chromedp.EmulateViewport(width, 900), tab.visit(p.path, theme))
				if p.do != nil {
					tab.run(t, p.do)
				}
				wide := get[bool](t, tab, `document.documentElement.scrollWidth > innerWidth`)
				png, err := chromedp.Run(tab.ctx, chromedp.FullScreenshot(100))
				if err != nil {
					t.Fatal(err)
				}
				if wide {
					t.Errorf("%s is wider than the screen of %d", p.name, width)
				}
				name := filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", p.name, width, theme))
				if err := os.WriteFile(name, png, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// press presses a button of the tree of changes and waits for the page that asks.
func press(do string) step {
	return chromedp.Steps(chromedp.Click(chromedp.CSS(`[name=do][value="`+do+`"]`)), see(`document.querySelector(".plan")`))
}
