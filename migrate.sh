#!/usr/bin/env bash
# Schema changes. Needs DATABASE_URL (environment or .env); see SCHEMA_MANAGEMENT.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python="$here/.venv/bin/python"
[ -x "$python" ] || python=$(command -v python3 || command -v python)
cd "$here"
exec "$python" -m ops.migrate "$@"
