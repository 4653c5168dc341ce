#!/bin/sh
# Make sure of what pip cannot install: a C compiler, Python's headers and venv, and the commands
# and libraries named as further arguments, with their Debian packages where those have another name.
# Usage: require_system.sh [--uncompiled | --can-compile] PYTHON [COMMAND|LIBRARY[=PACKAGE] ...]
#   --uncompiled    a compiler and headers are not needed
#   --can-compile   install and print nothing: tell by the exit status if they are there, or could be
set -eu
mode=
case $1 in --*) mode=$1; shift ;; esac
python=$1
shift

compiles() {
    command -v cc >/dev/null && "$python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
' 2>/dev/null
}
installs() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

if [ "$mode" = --can-compile ]; then
    compiles || installs
    exit
fi

packages=
command -v "$python" >/dev/null || packages="$packages python3"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo 3)
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python$version-venv"
[ "$mode" = --uncompiled ] || compiles || packages="$packages gcc libc6-dev python$version-dev"
for needed in "$@"; do
    name=${needed%%=*}
    command -v "$name" >/dev/null || ls /usr/lib/*/"$name" >/dev/null 2>&1 ||
        packages="$packages ${needed#*=}"
done
[ -n "$packages" ] || exit 0

if ! installs; then
    echo "missing on this machine; on Debian, root installs it with:" >&2
    echo "    apt-get install$packages" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086  # a list of words
apt-get install -q -y --no-install-recommends $packages
