#!/bin/sh
# Makes .venv and installs clusterft with its trainer and test tools, pinned by constraints.txt.
# Run again after an interruption: the stamp is written last, so a half-made .venv is finished, never trusted.
#
#   CLUSTERFT_PIP_ARGS   more words for pip, such as a find-links folder with CPU wheels of torch
#   CLUSTERFT_PYTHON     the interpreter to use
set -eu
cd "$(dirname "$0")/.."

needed_mib=3000   # the CPU build of torch; a CUDA build needs about 9000

say() { printf '%s\n' "$*" >&2; }

python=
for candidate in ${CLUSTERFT_PYTHON:+"$CLUSTERFT_PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  say "setup: Python 3.11 or newer is needed; python3 here is $(python3 --version 2>&1 || echo missing)"
  say "  install one (Debian 12, Ubuntu 24.04 and later have it: sudo apt-get install python3-venv),"
  say "  or name it: CLUSTERFT_PYTHON=/path/to/python3.12 make demo"
  exit 2
fi

want=$(cat pyproject.toml constraints.txt tools/setup.sh | cksum | cut -d' ' -f1,2)
if [ -x .venv/bin/python ] && [ "$(cat .venv/.stamp 2>/dev/null)" = "$want $PWD" ]; then
  exit 0
fi

free_mib=$(df -Pm . | awk 'NR == 2 {print $4}')
if [ "$free_mib" -lt "$needed_mib" ]; then
  say "setup: $free_mib MiB free in $PWD, $needed_mib needed for .venv"
  say "  free some room, or clone to another disk"
  exit 2
fi

if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  say "setup: $python cannot make virtual environments"
  say "  sudo apt-get install python3-venv"
  exit 2
fi

# A venv holds absolute paths: one that was moved, or whose interpreter is gone, is made anew.
if [ -e .venv ] && [ "$(cat .venv/.place 2>/dev/null)" != "$PWD" ]; then
  rm -rf .venv
fi
say "setup: installing into .venv (once; a few minutes)"
"$python" -m venv .venv
printf '%s' "$PWD" > .venv/.place
# shellcheck disable=SC2086 # the words of CLUSTERFT_PIP_ARGS are meant to be split
install() {
  .venv/bin/python -m pip install --quiet --disable-pip-version-check ${CLUSTERFT_PIP_ARGS:-} "$@" >>.venv/setup.log 2>&1
}
: > .venv/setup.log
# Of open_clip_torch the trainer reads CLIP's vocabulary alone; what it asks for (torchvision, timm) is not needed.
if ! { install --constraint constraints.txt --editable '.[trainer,dev]' &&
    install --no-deps 'open_clip_torch==3.3.0'; }; then
  tail -n 5 .venv/setup.log >&2
  say "setup: pip failed; all it said is in .venv/setup.log"
  say "  mend the cause above and run the command again; it continues where it was"
  exit 2
fi
printf '%s' "$want $PWD" > .venv/.stamp
