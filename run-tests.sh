#!/usr/bin/env bash
# Lint, types and all tests, against real servers that the tests start. Arguments go on to pytest;
# with arguments, only pytest runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. requirements/install.sh

ensure_venv
install_pinned dev.txt
if [ $# -eq 0 ]; then
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
fi
exec .venv/bin/python -m pytest "$@"
