#!/usr/bin/env bash
# The whole suite on each Python that is supported, each in an environment of its own from the lock file.
# UV: the uv to use. ALLOW_MISSING=1: a Python that is not on this machine is left out, and said, instead of failing.
# PYTHONS: other versions than those. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
UV=${UV:-.venv/bin/uv}
read -ra versions <<<"${PYTHONS:-3.11 3.12 3.13}"

is() { # whether $1 runs and is Python $2; a pyenv shim of a version that is not switched on does not run
  "$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$2" 2>/dev/null
}

find_python() {
  local candidate
  for candidate in $(type -ap "python$1" || true) "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1"*/bin/"python$1"; do
    if is "$candidate" "$1"; then echo "$candidate"; return; fi
  done
  return 1
}

missing=() failed=() passed=()
for version in "${versions[@]}"; do
  if ! python=$(find_python "$version"); then
    missing+=("$version")
    continue
  fi
  echo "== Python $version: $python"
  environment=.venv-$version
  UV_PROJECT_ENVIRONMENT=$environment "$UV" sync --frozen --quiet --compile-bytecode --python "$python"
  if "$environment/bin/python" -m pytest -n auto --dist loadgroup -m "not slow" "$@"; then
    passed+=("$version")
  else
    failed+=("$version")
  fi
done

echo "== passed: ${passed[*]:-none}; failed: ${failed[*]:-none}; not on this machine: ${missing[*]:-none}"
if ((${#missing[@]})); then
  echo "!! NOT TESTED, because it is not here: Python ${missing[*]}" >&2
  [[ ${ALLOW_MISSING:-} == 1 ]] || { echo "!! Install it, or say ALLOW_MISSING=1." >&2; exit 1; }
fi
((${#failed[@]} == 0))
