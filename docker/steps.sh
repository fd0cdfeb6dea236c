#!/bin/sh
# What the Dockerfiles do, in a form that CI runs too:
#   steps.sh wheel SOURCE WHEELS         build the wheel, compiled kernels and weights included
#   steps.sh install VENV WHEELS EXTRA   put it into a fresh environment
#   steps.sh check VENV                  say that what was installed is whole
set -eu
case "$1" in
wheel)
    # An absolute path: a bare name would be looked for in the package index.
    python3 -m pip wheel --quiet --no-deps --wheel-dir "$3" "$(cd "$2" && pwd)"
    ;;
install)
    python3 -m venv "$2"
    "$2/bin/pip" install --quiet --no-cache-dir "$(cd "$3" && ls "$PWD"/mask2surface-*.whl)[$4]"
    ;;
check)
    "$2/bin/m2s-run" --version
    "$2/bin/python" -P -c '
from m2s_runtime.bundle import load_bundle
from m2s_runtime.mesh_distance import KERNEL
print(load_bundle().path)
assert KERNEL == "native", "the kernel was not compiled"'
    ;;
*)
    sed -n '2,5p' "$0" >&2
    exit 2
    ;;
esac
