package web

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
)

//go:embed assets/app.css assets/app.mjs assets/icon.svg assets/htmx.min.js assets/hx-sse.min.js
var assetFiles embed.FS

// asset is a file that browsers may keep for ever: its address changes with its content.
type asset struct {
	url, kind string
	data      []byte
}

// assets by name.
var assets = loadAssets()

func loadAssets() map[string]asset {
	kinds := map[string]string{".css": "text/css; charset=utf-8", ".mjs": "text/javascript; charset=utf-8",
		".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	all := map[string]asset{}
	entries, err := fs.ReadDir(assetFiles, "assets")
	if err != nil {
		panic(fmt.Sprintf("embedded files: %v", err)) // the binary itself is broken
	}
	for _, e := range entries {
		data, err := assetFiles.ReadFile("assets/" + e.Name())
		if err != nil {
			panic(fmt.Sprintf("embedded files: %v", err))
		}
		sum := sha256.Sum256(data)
		ext := path.Ext(e.Name())
		url := "/assets/" + strings.TrimSuffix(e.Name(), ext) + "." + hex.EncodeToString(sum[:6]) + ext
		all[e.Name()] = asset{url, kinds[ext], data}
	}
	return all
}

// assetURL returns the address of an asset.
func assetURL(name string) string { return assets[name].url }

func (s *site) asset(w http.ResponseWriter, r *http.Request) {
	for _, a := range assets {
		if a.url == r.URL.Path {
			w.Header().Set("Content-Type", a.kind)
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			if r.Method != http.MethodHead {
				_, _ = w.Write(a.data) // a browser that went away
			}
			return
		}
	}
	s.notFound(w, r)
}
