# A worker. Build: docker build -t sluice .   Run: docker run --env-file .env sluice
# Other commands: docker run --env-file .env sluice python main.py verify
#                 docker run --env-file .env sluice ./migrate.sh upgrade
#                 docker run --env-file .env -p 50054:50054 sluice python main.py query   (QUERY_HOST=0.0.0.0)
#                 docker run --env-file .env -p 8050:8050 sluice python main.py dashboard (DASHBOARD_HOST=0.0.0.0)
FROM python:3.13-slim AS packages
COPY requirements/core.txt requirements/query.txt requirements/dashboard.txt /tmp/
RUN python -m venv /opt/sluice/.venv \
    && /opt/sluice/.venv/bin/pip install --no-cache-dir --require-hashes -r /tmp/query.txt \
    && /opt/sluice/.venv/bin/pip install --no-cache-dir --require-hashes -r /tmp/dashboard.txt

FROM python:3.13-slim
RUN useradd --system --uid 10001 sluice
COPY --from=packages /opt/sluice/.venv /opt/sluice/.venv
WORKDIR /opt/sluice
COPY *.py alembic.ini migrate.sh ./
COPY alembic alembic
COPY health health
COPY mqtt mqtt
COPY ops ops
COPY query query
COPY dashboard dashboard
RUN python -m compileall -q .  # else every start compiles everything anew
USER sluice
ENV PATH=/opt/sluice/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# /livez, /readyz, /metrics, on loopback; for Prometheus set HEALTH_HOST=0.0.0.0
ENV HEALTH_PORT=9464
# /livez: a server that is away is no reason to start the container anew
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s CMD ["python", "main.py", "health"]
# exec form: SIGTERM reaches Python
CMD ["python", "main.py"]
