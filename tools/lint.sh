#!/usr/bin/env bash
# gofmt, generated code, vet, staticcheck.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOFLAGS="-buildvcs=false ${GOFLAGS:-}"

unformatted=$(find . -name '*.go' -not -path './.git/*' -print0 | xargs -0 gofmt -l)
if [ -n "$unformatted" ]; then
	printf 'not gofmt-ed:\n%s\n' "$unformatted"
	exit 1
fi

# Generated code is committed; it must be what the templates say.
sums() { find web -name '*_templ.go' -print0 | sort -z | xargs -0 sha256sum; }
before=$(sums)
go tool templ generate -path web >/dev/null 2>&1 || { echo 'templ generate failed'; exit 1; }
if [ "$before" != "$(sums)" ]; then
	echo 'the generated code of web/ is not up to date: it has been written anew, commit it'
	exit 1
fi

go vet ./...
go tool staticcheck ./...
GOARCH=arm64 go vet ./driver/... ./cli
