#!/usr/bin/env bash
# From nothing to a report: makes .venv, installs musae_jax, and runs the whole road on the pocket model.
# Safe to run again: a run that was stopped goes on. Arguments go to `musae run`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/venv.sh

echo "Installing musae_jax"
python -m pip install --quiet --editable .

echo "Running the whole road on the pocket model"
exec musae run "$@"
