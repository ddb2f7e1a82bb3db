#!/usr/bin/env bash
# Installs the test extra into .venv and runs the whole suite with warnings as errors. Safe to run again, from anywhere.
# Arguments go to pytest: `bash scripts/test.sh -m slow` runs the slow tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/venv.sh

echo "Installing musae_jax with its test extra"
# torch is only the reference that parity tests compare with; the CPU build is enough and far smaller
python -c "import torch" 2>/dev/null || python -m pip install --quiet "torch==2.13.0"
python -m pip install --quiet --editable ".[test]"

echo "Running the tests"
# a file stays with one process, so that what its tests share is made and compiled once, and files go in their order:
# by number of tests, which xdist would take, the longest come last and one process waits for the other
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
