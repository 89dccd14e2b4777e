#!/usr/bin/env bash
# Build one virtual environment for each peer (their pins conflict) in .venv-peers, from benchmarks/peers/NAME.txt.
# A peer that cannot be installed leaves its reason in why-not.txt, which the table shows.
#
#   benchmarks/set_up.sh [NAME…]        PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -eq 0 ]; then
    for list in benchmarks/peers/*.txt; do set -- "$@" "$(basename "$list" .txt)"; done
fi
for name in "$@"; do
    venv=.venv-peers/$name wanted=benchmarks/peers/$name.txt
    if [ -e "$venv/done" ] && [ "$venv/done" -nt "$wanted" ]; then continue; fi
    echo "Installing $name into $venv."
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    if "$venv/bin/python" -m pip install --disable-pip-version-check --quiet -r "$wanted" 2>"$venv/pip.txt"; then
        touch "$venv/done"
    else
        grep -i error "$venv/pip.txt" | tail -n 1 >"$venv/why-not.txt" || echo "pip failed" >"$venv/why-not.txt"
        echo "$name cannot be installed: $(cat "$venv/why-not.txt")"
    fi
done
