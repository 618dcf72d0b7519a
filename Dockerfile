# One image for all parts. Build: docker build -t sluice .   Run: docker run --env-file .env sluice   (a worker)
# Other commands: docker run --env-file .env sluice python main.py verify
#                 docker run --env-file .env sluice ./migrate.sh upgrade
#                 docker run --env-file .env -p 50054:50054 sluice python main.py query   (QUERY_HOST=0.0.0.0)
#                 docker run --env-file .env -p 8050:8050 sluice python main.py dashboard (DASHBOARD_HOST=0.0.0.0)
# All of them write nowhere: docker run --read-only --cap-drop ALL --security-opt no-new-privileges …
#
# The base is pinned by version. To pin it by digest, which no rebuilding of the same version changes:
#   docker buildx imagetools inspect python:3.13.5-slim-bookworm --format '{{.Manifest.Digest}}'
# and put @sha256:… behind the version below. Renovate and Dependabot keep such a line up.
ARG BASE=python:3.13.5-slim-bookworm

FROM ${BASE} AS packages
COPY requirements/core.txt requirements/query.txt requirements/dashboard.txt /tmp/
# pip itself is not wanted where the program runs
RUN python -m venv /opt/sluice/.venv \
    && /opt/sluice/.venv/bin/pip install --no-cache-dir --require-hashes -r /tmp/query.txt \
    && /opt/sluice/.venv/bin/pip install --no-cache-dir --require-hashes -r /tmp/dashboard.txt \
    && /opt/sluice/.venv/bin/pip uninstall --yes pip

FROM ${BASE}
RUN groupadd --system --gid 10001 sluice \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin sluice
COPY --from=packages /opt/sluice/.venv /opt/sluice/.venv
WORKDIR /opt/sluice
COPY *.py alembic.ini migrate.sh ./
COPY alembic alembic
COPY health health
COPY mqtt mqtt
COPY ops ops
COPY query query
COPY dashboard dashboard
# Here, since the program may write nowhere: else every start would compile everything anew.
RUN python -m compileall -q .
# by number: Kubernetes cannot tell of a name that it is not root
USER 10001:10001
ENV PATH=/opt/sluice/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# /livez, /readyz, /metrics, on loopback; for Prometheus set HEALTH_HOST=0.0.0.0
ENV HEALTH_PORT=9464
# /livez: a server that is away is no reason to start the container anew
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s CMD ["python", "main.py", "health"]
# exec form: SIGTERM reaches Python
CMD ["python", "main.py"]
