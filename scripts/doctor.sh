#!/bin/sh
# Names everything this machine lacks, all at once, before anything is installed. PYTHON in the environment is judged
# alone; without it, the Python that .venv was made with comes first.
# usage: doctor.sh [GB of free disk]   or   doctor.sh --python, which prints the Python to use
set -u

# shellcheck disable=SC2317 # `first` calls them by name
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
# shellcheck disable=SC2317
makes_venvs() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo none; }

candidates() { # one path a line
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON"
    else
        [ ! -f .venv/pyvenv.cfg ] || sed -n 's/^executable = //p' .venv/pyvenv.cfg
        for name in python3 python3.13 python3.12 python3.11; do command -v "$name"; done
    fi
}

first() { # the first candidate that passes all of the given checks
    candidates | while IFS= read -r path; do
        for check; do "$check" "$path" || continue 2; done
        printf '%s\n' "$path"
        break
    done
}

python=$(first new_enough makes_venvs)
if [ "${1:-}" = --python ]; then
    printf '%s\n' "${python:-python3}"
    exit 0
fi

lacks='' packages=''
lack() { # what, why or remedy, package
    lacks="$lacks
  $1: $2"
    packages="$packages${3:+ $3}"
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || lack "Linux on x86-64" "the locks have no packages for $(uname -s) $(uname -m)"
command -v git >/dev/null || lack git "not on the PATH" git
command -v make >/dev/null || lack make "not on the PATH" make
if [ -z "$python" ]; then
    without=$(first new_enough)
    if [ -n "${PYTHON:-}" ]; then
        lack "Python 3.11 or newer, with venv and ensurepip" "PYTHON=$PYTHON is version $(version_of "$PYTHON")${without:+ without them}"
    elif [ -n "$without" ]; then
        lack "venv and ensurepip of Python" "$without has none" "python$(version_of "$without" | cut -d. -f1,2)-venv"
    else
        lack "Python 3.11 or newer" "python3 is version $(version_of python3). Ubuntu 22.04 has 3.11 beside it; \
elsewhere name one that you installed: make PYTHON=/path/to/python3.12" python3.11-venv
    fi
fi
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
[ "$free" -ge "${1:-1}" ] || lack "${1:-1} GB of free disk" "$free GB are free here"

[ -n "$lacks" ] || exit 0
printf 'This machine lacks%s\n' "$lacks" >&2
[ -z "$packages" ] || printf 'On Debian and Ubuntu:\n  sudo apt install%s\n' "$packages" >&2
exit 1
