#!/usr/bin/env bash
# Schema changes. Needs DATABASE_URL (environment or .env); see SCHEMA_MANAGEMENT.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python="$here/.venv/bin/python"
[ -x "$python" ] || python=$(command -v python3 || command -v python)
cd "$here"
# found, not imported: that would take as long as the command itself
look='import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))'
if ! "$python" -c "$look" alembic psycopg pydantic_settings 2>/dev/null; then
    echo "migrate: packages are missing for $python; see \"With your own servers\" in README.md" >&2
    exit 2
fi
exec "$python" -m ops.migrate "$@"
