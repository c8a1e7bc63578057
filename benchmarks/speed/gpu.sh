#!/usr/bin/env bash
# Does tfdqt work on an NVIDIA GPU of this machine, and how fast? In under 8 minutes:
#
#   bash benchmarks/speed/gpu.sh [OUT]
#
# Installs the package with TensorFlow's CUDA libraries in a fresh environment (3 GB), runs gpu.py,
# and leaves OUT/gpu.json (by default in runs/gpu). Exit code 0 if everything holds.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-runs/gpu}
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --no-deps -r requirements.txt
version=$("$venv/bin/pip" show tensorflow | sed -n 's/^Version: //p')
"$venv/bin/pip" install --quiet "tensorflow[and-cuda]==$version"
"$venv/bin/python" benchmarks/speed/gpu.py --out="$out"
