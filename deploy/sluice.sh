#!/bin/sh
# A command of Sluice with the settings and the secrets of its services: sudo /opt/sluice/sluice check
# `migrate` is ./migrate.sh, and everything else a command of main.py. install.sh puts this beside main.py.
set -eu
here=/opt/sluice credentials=/etc/sluice/credentials
# Without them a command would look at servers that no service uses.
[ -r "$credentials" ] && [ -x "$credentials" ] || {
    echo "sluice: $credentials cannot be read by $(id -un); run it with sudo" >&2; exit 2; }
for file in "$credentials"/*; do
    [ -f "$file" ] || continue
    name=$(printf %s "${file##*/}" | tr '[:lower:]' '[:upper:]')
    case $name in *[!A-Z_]*) continue ;; esac
    export "${name}_FILE=$file"
done
if [ "${1-}" = migrate ]; then
    shift
    exec "$here/migrate.sh" "$@"
fi
exec "$here/.venv/bin/python" "$here/main.py" "$@"
