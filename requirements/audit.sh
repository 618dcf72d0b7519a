#!/usr/bin/env bash
# Asks whether the packages that run in production have known vulnerabilities. Run by `make audit`. pip-audit gets a
# virtual environment of its own, so that it is no part of what it looks at.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=.venv/audit
if ! [ -x $tool/bin/pip-audit ]; then
    python3 -m venv $tool
    $tool/bin/pip --disable-pip-version-check install --quiet pip-audit || {
        rm -rf $tool
        echo "audit: pip-audit could not be installed, so nothing was asked; is the package index reachable?" >&2
        exit 2
    }
fi
status=0
for name in core query dashboard; do
    echo "requirements/$name.txt"
    # --strict: a package of which the service knows nothing, as behind a mirror, is no package without flaws.
    # No pip: everything is pinned by hash, so there is nothing to find out and nothing to install.
    if output=$($tool/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
        --requirement requirements/$name.txt 2>&1); then
        printf '%s\n' "$output"
        continue
    fi
    printf '%s\n' "$output" | tail -n 40 >&2
    if ! printf '%s\n' "$output" | grep -q '^Found [0-9]* known vulnerabilit'; then
        echo "audit: requirements/$name.txt was not judged: the service that knows vulnerabilities cannot be reached from" \
            "here, or does not know a package (above). This is no finding, and no acquittal: run it again where" \
            "the public package index can be reached (pip's settings for proxies are heeded)" >&2
        exit 2
    fi
    status=1
done
exit $status
