#!/usr/bin/env bash
# Installs what the tests need and what is not there, through apt, when it may.
set -euo pipefail

missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need chromium chromium
need strace strace
need git git
need tmux tmux
need gcc gcc
need unshare util-linux
need jq jq
need python3 python3
need node nodejs
need npm npm
need gdb gdb
need dbus-daemon dbus
need ssh-agent openssh-client
need gsettings libglib2.0-bin
need dconf dconf-cli
need curl curl
need tshark tshark
need script bsdutils
need ip iproute2
need dig dnsutils
need ping iputils-ping
need bindfs bindfs
need fusermount3 fuse3
[ -x /usr/sbin/sshd ] || missing+=(openssh-server)
[ -e /usr/share/dbus-1/services/ca.desrt.dconf.service ] || missing+=(dconf-service dconf-gsettings-backend)
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)
# Also of the python3 that the ordinary user has.
PATH=/usr/local/bin:/usr/bin:/bin python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
[ -e /usr/share/zoneinfo/UTC ] || missing+=(tzdata)
dpkg -s libc6-dev >/dev/null 2>&1 || missing+=(libc6-dev)
# A box's own network is a tun device, which everybody may make in a namespace of his own.
if [ "$(id -u)" = 0 ]; then
	[ -e /dev/net/tun ] || { mkdir -p /dev/net && mknod /dev/net/tun c 10 200; }
	chmod 0666 /dev/net/tun
	# File systems in user space are mounted by everybody, where the kernel has them.
	[ -e /dev/fuse ] || mknod /dev/fuse c 10 229
	chmod 0666 /dev/fuse
fi
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null || {
		echo "missing: ${missing[*]}; install them as root" >&2
		exit 1
	}
	as_root=(sudo -n)
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
