#!/usr/bin/env bash
# Lint, types and all tests, against real servers that the tests start. Arguments go on to pytest;
# with arguments, only pytest runs, one test after the other. SLUICE_TESTS_WORKERS: how many processes share
# all the tests; by default two more than there are processors, as many tests wait most of their time.
# SLUICE_TESTS_NEED=mosquitto: without it the tests fail, instead of leaving out what needs it; as with CI set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. requirements/install.sh

ensure_venv
install_pinned dev.txt
if [ $# -eq 0 ]; then
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
    processors=$(.venv/bin/python -c 'import os; print(os.cpu_count() or 1)')
    set -- -n "${SLUICE_TESTS_WORKERS:-$((processors + 2))}" --dist loadgroup --no-loadscope-reorder
fi
exec .venv/bin/python -m pytest "$@"
