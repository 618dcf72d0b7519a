#!/usr/bin/env bash
# Makes the secrets of deploy/compose.yaml, each a file: deploy/secrets.sh [FOLDER]   (default: deploy/secrets)
# What is there already is kept, so that it may run again; only redis_users is made anew, from the passwords that are
# there, where docs/operations.md has other rights now (restart Redis then). The files can be read by everybody, since a container
# sees them with the owner that they have here; it is the folder that only you may enter.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-$here/secrets}
lines=$here/../docs/operations.md  # its ACL lines are those that the tests run every program with
mkdir -p "$folder"
chmod 700 "$folder"

keep() {  # keep NAME VALUE
    [ -e "$folder/$1" ] || put "$1" "$2"
}

put() {  # put NAME VALUE
    printf '%s\n' "$2" >"$folder/$1.new"
    chmod 444 "$folder/$1.new"
    mv "$folder/$1.new" "$folder/$1"
    echo "made $folder/$1"
}

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

user() {  # user NAME PASSWORD [FURTHER RIGHTS] [NAME IN THE PAGE]
    local line
    line=$(grep "^user sluice-${4:-$1} on >PASSWORD " "$lines") || {
        echo "secrets: docs/operations.md has no line for the Redis user sluice-${4:-$1}" >&2; exit 1; }
    line=${line/>PASSWORD/>$2}
    echo "${line/user sluice-${4:-$1} /user sluice-$1 }${3:+ $3}"
}

keep postgres_password "$(random)"
keep database_url "postgresql://sluice:$(cat "$folder/postgres_password")@timescaledb:5432/sluice"
for name in worker bridge dashboard; do
    keep "redis_${name}_password" "$(random)"
    keep "redis_${name}_url" "redis://sluice-$name:$(cat "$folder/redis_${name}_password")@redis:6379/0"
done
# Whoever shows no password may say PING, which is what the health check does, and nothing else.
# `compose exec worker …` runs an operator's commands with a worker's account.
by_hand=$(sed -n 's/^A worker.s account runs .* with `\(+[a-z +]*\)` added.*/\1/p' "$lines")
more=$(sed -n 's/^The dashboard takes the line of `verify` with `\(+[a-z|]*\)` added.*/\1/p' "$lines")
users=$(
    echo 'user default on nopass resetkeys resetchannels -@all +ping'
    user worker "$(cat "$folder/redis_worker_password")" "$by_hand"
    user bridge "$(cat "$folder/redis_bridge_password")"
    user dashboard "$(cat "$folder/redis_dashboard_password")" "$more" verify
)
if [ ! -e "$folder/redis_users" ]; then
    put redis_users "$users"
elif [ "$(cat "$folder/redis_users")" != "$users" ]; then
    cp -p "$folder/redis_users" "$folder/redis_users.old"  # lines that somebody has added are not lost
    put redis_users "$users"
    echo "its rights have changed (what it was is in redis_users.old); Redis reads it when it starts:" \
        "docker compose -f deploy/compose.yaml restart redis"
fi
keep query_token "$(random)"
keep dashboard_password "$(random)"
keep grafana_password "$(random)"
