# Sourced by run-standalone.sh and run-tests.sh: finds Python, makes .venv, installs what is pinned.

say() { printf '%s\n' "$*" >&2; }

find_python() {  # the first Python that is new enough
    local name
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$name"
            return
        fi
    done
    say "Sluice needs Python 3.11 or newer and found none; install it, or set PYTHON to its path."
    return 1
}

ensure_venv() {
    local python
    [ -x .venv/bin/python ] && .venv/bin/python -c 'import pip' 2>/dev/null && return
    python=$(find_python) || return 1
    say "Making a virtual environment in .venv …"
    rm -rf .venv
    if ! "$python" -m venv .venv >&2; then
        say "'$python -m venv' failed. On Debian and Ubuntu: apt install python3-venv"
        return 1
    fi
}

install_pinned() {  # install_pinned FILE: unless this very file was installed already
    local file=requirements/$1 stamp=.venv/installed-$1
    cmp -s "$file" "$stamp" && return
    say "Installing $(grep -c '==' "$file") pinned packages ($file) …"
    PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --quiet --root-user-action=ignore \
        --require-hashes -r "$file" >&2 || return 1
    cp "$file" "$stamp"
}
