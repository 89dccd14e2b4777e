#!/usr/bin/env bash
# Build a virtual environment and install greenroom into it, or say plainly what is missing.
#
#   tools/set_up.sh VENV [EXTRA,EXTRA…]        PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
extras=${2:-}

stop() {
    printf 'greenroom cannot be set up: %s\n' "$@" >&2
    exit 1
}

# A name on the PATH is not yet an interpreter (version managers put empty shims there), so each candidate is run.
recent() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# The versions that the constraints were resolved for come first, then whatever python3 is.
find_python() {
    local candidate without_venv=
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        recent "$candidate" || continue
        if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    [ -z "$without_venv" ] || stop "$without_venv has no venv module. On Debian and Ubuntu: apt-get install ${without_venv##*/}-venv"
    [ -z "${PYTHON:-}" ] || stop "PYTHON=$PYTHON is not a Python of version 3.11 or newer."
    local found
    found=$(python3 --version 2>/dev/null) || found="no working python3"
    stop "it needs Python 3.11 or newer, and there is $found here. Install one, or name one: make PYTHON=/path/to/python …"
}

if ! recent "$venv/bin/python"; then
    [ ! -e "$venv" ] || stop "$venv is there but holds no working Python of version 3.11 or newer. Remove it: rm -r $venv"
    python=$(find_python)
    echo "Creating $venv with $("$python" --version)."
    "$python" -m venv "$venv"
fi

echo "Installing greenroom${extras:+ with $extras} into $venv (the first time takes minutes: PyTorch is large)."
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".${extras:+[$extras]}" ||
    stop "pip failed, see above. It needs to reach the Python package index, or a mirror set in pip's configuration."
