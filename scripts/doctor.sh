#!/bin/sh
# Names everything this machine lacks, before anything is installed. With --python: prints the Python to use.
set -u

usable() { # a Python from 3.11 on that can make environments with pip
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && "$1" -c 'import venv, ensurepip' 2>/dev/null
}

find_python() {
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        path=$(command -v "$name") && usable "$path" && { printf '%s\n' "$path"; return; }
    done
    return 1
}

if [ "${1:-}" = --python ]; then
    find_python || printf 'python3\n'
    exit 0
fi

missing=0
lack() {
    [ "$missing" = 1 ] || echo "This machine lacks:" >&2
    missing=1
    printf '  %-28s %s\n' "$1" "$2" >&2
}

command -v git >/dev/null || lack "git" "apt install git"
[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || lack "Linux on x86-64" "the locks hold no packages for $(uname -s) $(uname -m)"
if ! find_python >/dev/null; then
    have=$(python3 -c 'import platform; print(platform.python_version())' 2>/dev/null || echo none)
    lack "Python 3.11 or newer, with venv" "python3 here: $have. apt install python3-venv; on Ubuntu 22.04, whose python3 is 3.10: apt install python3.11-venv; or make PYTHON=/path/to/python3.11"
fi
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$free" -ge 12 ] || lack "12 GB of free disk" "$free GB are free here"
exit "$missing"
