#!/usr/bin/env bash
# Sets the environment up (.venv, requirements-test.txt), then checks style and runs the tests.
#   bash tests/run.sh [arguments for pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE  # as in run_example.sh
bash run_example.sh setup
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-test.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal "$@"
