# Mailroom's programs for containers: `mailroom run` unless another command is given. docs/deploy.md.
# tests/project/test_image.py builds and runs it, without an engine.
FROM python:3.13-slim-bookworm AS build
WORKDIR /build
COPY requirements/build.txt requirements/image.txt requirements/
RUN python -m venv --without-pip /opt/mailroom
RUN python -m pip --python /opt/mailroom/bin/python install --disable-pip-version-check --no-cache-dir \
    --only-binary :all: --require-hashes -r requirements/image.txt
RUN python -m venv tools
RUN tools/bin/python -m pip install --disable-pip-version-check --no-cache-dir \
    --only-binary :all: --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY scripts/build_messages.py scripts/
COPY src src
RUN tools/bin/python -m hatchling build -t wheel
RUN python -m pip --python /opt/mailroom/bin/python install --disable-pip-version-check --no-cache-dir \
    --no-index --no-deps dist/*.whl
RUN mkdir output

FROM python:3.13-slim-bookworm
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Mailroom" \
      org.opencontainers.image.description="User-lifecycle mail (activation, password recovery, magic links, notices) for applications whose users live in PostgreSQL" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /opt/mailroom /opt/mailroom
# A number, so that Kubernetes can see that it is not root; the folder takes a volume.
COPY --from=build --chown=10001:10001 /build/output /var/lib/mailroom
ENV PATH=/opt/mailroom/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    MAILROOM_HTTP=0.0.0.0:8027 \
    MAILROOM_SES_OUTPUT_PATH=/var/lib/mailroom
WORKDIR /tmp
USER 10001:10001
EXPOSE 8027
# Alive, not ready: an outage of PostgreSQL or SES must not make the container unhealthy, since that may restart it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['MAILROOM_HTTP'].rpartition(':')[2]), timeout=4); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["mailroom", "run"]
