#!/bin/sh
# Make sure of what pip cannot install: a C compiler, Python's headers and venv, and the commands
# and libraries named as further arguments, with their Debian packages where those have another name.
# Usage: require_system.sh PYTHON [COMMAND|LIBRARY[=PACKAGE] ...]
set -eu
python=$1
shift

packages=
command -v cc >/dev/null || packages="$packages gcc libc6-dev"
command -v "$python" >/dev/null || packages="$packages python3"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo 3)
"$python" -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python$version-venv"
"$python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
' 2>/dev/null || packages="$packages python$version-dev"
for needed in "$@"; do
    name=${needed%%=*}
    command -v "$name" >/dev/null || ls /usr/lib/*/"$name" >/dev/null 2>&1 ||
        packages="$packages ${needed#*=}"
done
[ -n "$packages" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing on this machine; on Debian, root installs it with:" >&2
    echo "    apt-get install$packages" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086  # a list of words
apt-get install -q -y --no-install-recommends $packages
