#!/usr/bin/env bash
# Everything that must hold: the one test command. As root it runs the tests of boxes a
# second time, as an ordinary user.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOFLAGS="-buildvcs=false ${GOFLAGS:-}"
export SANDGLASS_NO_SKIP=1 # setup.sh has installed the programs

step() { printf '\n== %s\n' "$*"; }
began=$SECONDS

step 'what the tests need'
bash tools/setup.sh

step 'lint'
bash tools/lint.sh

step 'tests'
CGO_ENABLED=0 go test -timeout 30m $(go list ./... | grep -v '/attacks$')

step 'ways out of a box' # alone: it keeps the machine busy
CGO_ENABLED=0 go test -timeout 15m ./attacks

step 'tests under the race detector'
# Real programs, what is tried one call or one command after another, and scripts that end their
# daemon before the next command show no race that the other tests do not.
alone='TestExfiltration|TestAPortScanFindsNothing|TestProgramsOnTheNetwork|TestRealProgramsBehaveAsOutside|TestServicesInABox|TestABoxBehavesAsTheRealTree|TestAFullDisk'
alone+='|TestScripts/^(box_(commit|create|damage|diff|diff_settings|discard|doctor|house|limits|ops|ps|rm|rollback)|completion|help|home|outside|private|policy_errors|run_refused|version)$'
CGO_ENABLED=1 go test -race -timeout 40m -skip "$alone" $(go list ./... | grep -v -e '/store$' -e '/attacks$')
# The store's property tests take minutes under it and run on one goroutine: of the
# store only what runs on several.
CGO_ENABLED=1 go test -race -timeout 15m -run 'Reader|Writer|Processes|Deadline' ./store

if [ "$(id -u)" = 0 ]; then
	step 'tests of boxes as an ordinary user'
	user=sandglass-test
	id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$user"
	dir=$(mktemp -d /var/tmp/sandglass-test.XXXXXX)
	trap 'rm -rf "$dir"' EXIT
	chmod 755 "$dir"
	go=$(go env GOROOT)
	su "$user" -c "test -x '$go/bin/go'" || { cp -r "$go" "$dir/go" && go=$dir/go; }
	CGO_ENABLED=0 go build -trimpath -o "$dir/sandglass" .
	for p in driver driver/layers cli attacks; do
		CGO_ENABLED=0 go test -c -o "$dir/$p.test" "./$p"
		mkdir -p "$dir/$p"
		[ ! -d "$p/testdata" ] || cp -r "$p/testdata" "$dir/$p/"
		chown -R "$user" "$dir/$p"
		echo "-- $p"
		su "$user" -c "cd '$dir/$p' && PATH='$go/bin':/usr/local/bin:/usr/bin:/bin TMPDIR=/tmp SANDGLASS_BINARY='$dir/sandglass' exec env --default-signal=INT,QUIT '$dir/$p.test' -test.timeout 30m"
	done
fi

printf '\nall tests passed in %d s\n' $((SECONDS - began))
