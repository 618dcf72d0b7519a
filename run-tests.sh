#!/usr/bin/env bash
# Lint, types and all tests, against real servers that the tests start. Arguments go on to pytest;
# with arguments, only pytest runs, one test after the other. SLUICE_TESTS_WORKERS: how many processes share
# all the tests; by default two more than there are processors, up to eight, as many tests mostly wait.
# SLUICE_LONG=1: tests that have a long form run in it, which takes some minutes more.
# SLUICE_TESTS_NEED="mosquitto chromium pgbouncer redis-tools postgresql": their absence fails the tests that
# need them, as with CI set; else those tests are left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. requirements/install.sh
unset PYTHONDONTWRITEBYTECODE  # else each of the hundreds of processes compiles the whole program anew

ensure_venv
install_pinned dev.txt
if [ $# -eq 0 ]; then
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy & types=$!
    # Meanwhile: pytest compiles each test once, which all its processes would do beside each other.
    found=$(.venv/bin/python -m pytest --collect-only -qq 2>&1) || { wait; printf '%s\n' "$found"; exit 1; }
    wait "$types"
    usual=$(.venv/bin/python -c 'import os; print(min(8, (os.cpu_count() or 1) + 2))')
    set -- -n "${SLUICE_TESTS_WORKERS:-$usual}" --dist loadgroup --no-loadscope-reorder
fi
exec .venv/bin/python -m pytest "$@"
