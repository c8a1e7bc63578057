#!/usr/bin/env bash
# tfdqt as a library in someone's own environment: build the wheel, let pip resolve what it
# declares, follow the sentence that tells of TF-Agents, train, import every module and use the
# run, all away from the checkout. Takes one to two and a half minutes.
#   .ci/check_install.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "check_install: $*" >&2
  exit 1
}

# Built from a copy: setuptools leaves a build/ behind, and what is stale in it enters the next
# wheel.
mkdir "$work/source"
cp -r pyproject.toml README.md LICENSE tfdqt "$work/source"
find "$work/source" -name __pycache__ -prune -exec rm -r {} +
"$python" -m venv "$work/venv"
PATH="$work/venv/bin:$PATH"
pip wheel --quiet --no-deps --wheel-dir "$work" "$work/source"
python - "$work/source" "$work"/tfdqt-*.whl <<'EOF'
import sys
import zipfile
from pathlib import Path

source, wheel = sys.argv[1:]
files = Path(source, "tfdqt").rglob("*")
expected = {path.relative_to(source).as_posix() for path in files if path.is_file()}
packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
if packed != expected:
    lacking, extra = sorted(expected - packed), sorted(packed - expected)
    sys.exit(f"check_install: the wheel lacks {lacking}, and {extra} should not be in it")
EOF

# Not compiled to bytecode, which would take longer than the rest: only a part of it is imported.
pip install --quiet --no-compile "$work"/tfdqt-*.whl
cd "$work"
status=0
python "$checkout/scripts/run_dqn.py" --run-dir=run > /dev/null 2> said.txt || status=$?
[[ $status == 2 ]] && ! grep -q Traceback said.txt ||
  fail "without TF-Agents: exit code $status instead of 2 and a sentence: $(cat said.txt)"
advice=$(grep -o "pip install --no-deps .*" said.txt) || fail "no command in: $(cat said.txt)"
read -ra advice <<< "$advice"
"${advice[@]}" --quiet --no-compile
others=$(pip check | grep -vE "^(tf-agents|gym) " || true)
[[ -z $others ]] || fail "pip check: $others"

python "$checkout/scripts/run_dqn.py" --name=CartPole-v1 --total-steps=512 --learning-starts=128 \
  --run-dir=run
python - <<'EOF'
import importlib
import pkgutil
import sys

import tfdqt

assert tfdqt.__file__.startswith(sys.prefix), tfdqt.__file__
for module in pkgutil.walk_packages(tfdqt.__path__, "tfdqt."):
    importlib.import_module(module.name)

import gymnasium

policy = tfdqt.load_policy("run")
policy.reset()
obs, _ = gymnasium.make("CartPole-v1").reset(seed=0)
assert policy(obs) in (0, 1)
python = sys.version.split()[0]
print(f"tfdqt {tfdqt.__version__} on Python {python}: installed, trained and used as a library.")
EOF
