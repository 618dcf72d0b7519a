# Sourced by run-standalone.sh and run-tests.sh: finds Python, makes .venv, installs what is pinned.

say() { printf '%s\n' "$*" >&2; }

new_enough() {  # new_enough PYTHON
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {  # the one that PYTHON names, else the first that is new enough
    local name
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" && printf '%s\n' "$PYTHON" && return
        say "PYTHON is $PYTHON, which is no Python 3.11 or newer; Sluice needs one."
        return 1
    fi
    for name in python3 python3.13 python3.12 python3.11 python3.14 python; do
        new_enough "$name" && printf '%s\n' "$name" && return
    done
    say "Sluice needs Python 3.11 or newer and found none; install it, or set PYTHON to its path."
    return 1
}

ensure_venv() {
    local python
    # One of an older Python would meet packages, and then code, that it cannot take: made anew.
    [ -x .venv/bin/python ] && new_enough .venv/bin/python && .venv/bin/python -c 'import pip' 2>/dev/null && return
    python=$(find_python) || return 1
    if [ ! -w . ]; then
        say "Nothing can be written in $PWD, where the packages go (.venv); copy the folder to where you may write."
        return 1
    fi
    say "Making a virtual environment in .venv …"
    rm -rf .venv
    if ! "$python" -m venv .venv >&2; then
        rm -rf .venv
        say "'$python -m venv' failed. Is the disk full? On Debian and Ubuntu: apt install python3-venv"
        return 1
    fi
}

install_pinned() {  # install_pinned FILE: unless this very file was installed already
    local file=requirements/$1 stamp=.venv/installed-$1
    cmp -s "$file" "$stamp" && return
    say "Installing $(grep -c '==' "$file") pinned packages ($file) …"
    if ! PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --quiet --root-user-action=ignore \
        --require-hashes -r "$file" >&2; then
        say "The packages of $file could not be installed. \"from versions: none\" above means that pip reached no" \
            "package index (a proxy: HTTPS_PROXY; a mirror: PIP_INDEX_URL), or that there is no package for this" \
            "machine ($(uname -sm)): see \"Which machines\" in README.md. What was installed is kept for the next try."
        return 1
    fi
    cp "$file" "$stamp"
}
