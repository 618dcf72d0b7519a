#!/usr/bin/env bash
# Installs Sluice on a machine with systemd: program, packages, settings, units. Checks first, then writes.
# Run it again after an update, or after a secret was added: it changes only what is not yet as it should be,
# and never a setting. It starts nothing.
set -euo pipefail
umask 022 # services run as a user of their own, which has to read what root has installed
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prefix=/opt/sluice dry_run= workers=1 packages=yes python=python3
root=${DESTDIR:-}

usage() {
    cat <<'USAGE'
usage: deploy/install.sh [--dry-run] [--prefix DIR] [--workers N] [--python PATH] [--no-packages]
  --dry-run      say what would be done, and do nothing
  --prefix DIR   where the program goes (default /opt/sluice)
  --workers N    how many workers get a port of their own for health and metrics (default 1)
  --python PATH  the Python to use, 3.11 or newer (default python3)
  --no-packages  leave the virtual environment as it is
With DESTDIR set everything is written below that folder, for a package or a test.
USAGE
}
refuse() { printf 'install: %s\n' "$*" >&2; exit 1; }
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=yes ;;
        --no-packages) packages= ;;
        --prefix | --workers | --python)
            [ $# -gt 1 ] || { usage >&2; exit 2; }
            case $1 in --prefix) prefix=$2 ;; --workers) workers=$2 ;; --python) python=$2 ;; esac
            shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done

# ---- Checks, before anything is written
case $prefix in
    *[!A-Za-z0-9/._-]* | [!/]*) refuse "--prefix is '$prefix'; it takes an absolute path of letters, digits, . _ and -" ;;
esac
case /$prefix/ in
    */../*) refuse "--prefix is '$prefix'; it takes a path without .." ;;
esac
[ "$prefix" != / ] || refuse "--prefix is /; it takes a folder of its own, such as /opt/sluice"
case $workers in
    '' | *[!0-9]*) refuse "--workers is '$workers'; it takes a number from 1 to 99" ;;
esac
[ "$workers" -ge 1 ] && [ "$workers" -le 99 ] || refuse "--workers is $workers; it takes a number from 1 to 99"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    refuse "$python is missing or older than 3.11; install Python, or name one with --python"
if [ -n "$packages" ]; then
    base=$("$python" -c 'import sys; print(sys.base_prefix)')
    for hidden in root home run/user; do
        case $base/ in
            "/$hidden/"*) refuse "$python is in $base, which no service can see (ProtectHome=yes);" \
                "name one outside of home folders with --python, such as /usr/bin/python3" ;;
        esac
    done
fi
[ -f "$here/main.py" ] && [ -f "$here/requirements/core.txt" ] || refuse "$here is no checkout of Sluice"
if [ -n "$(ls -A "$root$prefix" 2>/dev/null)" ] && ! [ -f "$root$prefix/.sluice" ] &&
    ! { [ -f "$root$prefix/migrate.sh" ] && [ -f "$root$prefix/requirements/core.txt" ]; }; then
    # folders and modules that are not of this version are removed there
    refuse "$root$prefix is not empty, and nothing that this has installed; it takes a folder of its own"
fi
[ "$here" != "$root$prefix" ] || refuse "$here is where it would be installed; run it from another folder"
if [ -z "$root" ] && [ -z "$dry_run" ]; then
    [ "$(id -u)" = 0 ] || refuse "only root may write to $prefix and /etc; run it with sudo"
    command -v systemctl >/dev/null || refuse "there is no systemctl; this installs services of systemd"
    version=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    [ "${version:-0}" -ge 250 ] || refuse "systemd is ${version:-unknown}; 250 is the oldest that hands over credentials so"
fi

# ---- What changes anything goes through these
say() { printf '%s\n' "$*"; }
act() { if [ -n "$dry_run" ]; then say "would: $*"; else "$@"; fi; }
changed=
write() {  # write FILE MODE < content: only where it is not there already
    local file=$root$1 content
    content=$(cat; printf x)
    if [ -f "$file" ] && [ "$(cat "$file"; printf x)" = "$content" ]; then return; fi
    changed=yes
    if [ -n "$dry_run" ]; then say "would: write $file"; return; fi
    mkdir -p "$(dirname "$file")"
    printf %s "${content%x}" >"$file.new"
    chmod "$2" "$file.new"
    mv "$file.new" "$file"
    say "wrote $file"
}

# ---- Program
say "Sluice goes to $root$prefix, its settings are in $root/etc/sluice."
act mkdir -p "$root$prefix"
act touch "$root$prefix/.sluice"
for folder in alembic deploy docs health mqtt ops query dashboard requirements; do
    act rm -rf "$root${prefix:?}/$folder.new"
    act cp -R "$here/$folder" "$root$prefix/$folder.new"
    act find "$root$prefix/$folder.new" -name __pycache__ -prune -exec rm -rf {} +
    act chmod -R a+rX "$root$prefix/$folder.new"
    act rm -rf "$root${prefix:?}/$folder"
    act mv "$root$prefix/$folder.new" "$root$prefix/$folder"
done
for old in "$root$prefix"/*.py; do  # a module that this version no longer has
    [ ! -e "$old" ] || [ -e "$here/${old##*/}" ] || act rm "$old"
done
act cp "$here"/*.py "$here/alembic.ini" "$here/migrate.sh" "$here/.env.example" "$root$prefix/"
act chmod a+rX "$root$prefix"/*.py "$root$prefix/alembic.ini" "$root$prefix/migrate.sh" "$root$prefix/.env.example"
sed "s#/opt/sluice#$prefix#g" "$here/deploy/sluice.sh" | write "$prefix/sluice" 0755
if [ -n "$packages" ]; then
    [ -x "$root$prefix/.venv/bin/python" ] || act "$python" -m venv "$root$prefix/.venv"
    for list in core query dashboard; do
        act "$root$prefix/.venv/bin/python" -m pip install --quiet --require-hashes -r "$here/requirements/$list.txt"
    done
    # The services may write nowhere, so they could not keep what they compile.
    act "$root$prefix/.venv/bin/python" -m compileall -q -x '/[.]venv/' "$root$prefix"
fi

# ---- Settings: made once, never changed
if [ ! -e "$root/etc/sluice/sluice.env" ]; then
    sed 's/^DATABASE_URL=/# &/' "$here/.env.example" | write /etc/sluice/sluice.env 0644
fi
[ -L "$root$prefix/.env" ] || act ln -sfn /etc/sluice/sluice.env "$root$prefix/.env"
if [ ! -d "$root/etc/sluice/credentials" ]; then
    act mkdir -p "$root/etc/sluice/credentials"
    act chmod 0700 "$root/etc/sluice/credentials"
fi
port() {  # port SERVICE NUMBER: where it tells of itself
    [ -e "$root/etc/sluice/$1.env" ] || printf 'HEALTH_PORT=%s\n' "$2" | write "/etc/sluice/$1.env" 0644
}
port sluice-bridge 9465
port sluice-query 9466
port sluice-dashboard 9467
for number in $(seq "$workers"); do port "sluice-worker@worker-$number" $((9470 + number)); done

# ---- Units
for unit in "$here"/deploy/systemd/sluice*; do
    sed "s#/opt/sluice#$prefix#g" "$unit" | write "/etc/systemd/system/${unit##*/}" 0644
done

# ---- Secrets: each service gets those that it may need and that are there
hand_over() {  # hand_over UNIT NAME...: a drop-in for what /etc/sluice/credentials holds
    local unit=$1 name lines=
    shift
    for name; do
        if [ -f "$root/etc/sluice/credentials/$name" ]; then
            lines+="LoadCredential=$name:/etc/sluice/credentials/$name"$'\n'
            lines+="Environment=${name^^}_FILE=%d/$name"$'\n'
        fi
    done
    local file=/etc/systemd/system/$unit.d/credentials.conf
    if [ -n "$lines" ]; then
        printf '# Made by install.sh from /etc/sluice/credentials\n[Service]\n%s' "$lines" | write "$file" 0644
    elif [ -e "$root$file" ]; then
        changed=yes
        act rm "$root$file"
    fi
}
redis="redis_url redis_username redis_password redis_sentinel_username redis_sentinel_password"
mqtt="mqtt_url mqtt_username mqtt_password"
# shellcheck disable=SC2086  # lists of names
{
    hand_over sluice-worker@.service database_url $redis $mqtt
    hand_over sluice-bridge.service $redis $mqtt
    hand_over sluice-query.service database_url database_direct_url mqtt_url query_token query_delete_token
    hand_over sluice-dashboard.service database_url database_direct_url mqtt_url $redis dashboard_password dashboard_token
}
if [ -z "$root" ] && [ -n "$changed" ]; then act systemctl daemon-reload; fi

cat <<NEXT
Next, as root:
  1. secrets, one a file: (umask 077; echo 'postgresql://…' >/etc/sluice/credentials/database_url), as well
     redis_url, mqtt_url and others where you need them; then run this again
  2. settings: edit /etc/sluice/sluice.env
  3. $prefix/sluice migrate upgrade, and $prefix/sluice check: the schema; is all as it should be?
  4. systemctl enable --now sluice.target sluice-worker@worker-1 (and sluice-bridge sluice-query sluice-dashboard)
NEXT
