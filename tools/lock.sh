#!/bin/sh
# Writes constraints.txt anew: the newest versions that pyproject.toml allows, resolved in a fresh environment.
#   CLUSTERFT_PIP_ARGS   more words for pip
set -eu
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT INT TERM
.venv/bin/python -m venv "$scratch/venv"
# shellcheck disable=SC2086 # the words of CLUSTERFT_PIP_ARGS are meant to be split
"$scratch/venv/bin/python" -m pip install --quiet ${CLUSTERFT_PIP_ARGS:-} '.[trainer,dev]'
# A CPU build calls itself 2.13.0+cpu; the constraint must admit the CUDA build of the same version.
"$scratch/venv/bin/python" -m pip freeze --exclude clusterft | sed 's/+cpu$//' > "$scratch/constraints.txt"
mv "$scratch/constraints.txt" constraints.txt
echo "constraints.txt: $(wc -l < constraints.txt) packages"
