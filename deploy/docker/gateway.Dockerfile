# The gateway alone. From the repository's root: docker build -f deploy/docker/gateway.Dockerfile -t deepseek-gateway:0.1.0 .
FROM python:3.12-slim-trixie AS build
WORKDIR /src
# What it needs first: a layer that only another version of something changes.
COPY deploy/docker/gateway.lock .
RUN python -m venv /opt/deepseek \
    && /opt/deepseek/bin/pip install --no-cache-dir --no-deps -r gateway.lock
COPY packages/client packages/client
COPY packages/gateway packages/gateway
RUN /opt/deepseek/bin/pip install --no-cache-dir --no-deps ./packages/client ./packages/gateway \
    && /opt/deepseek/bin/pip check \
    && /opt/deepseek/bin/pip uninstall --yes --quiet pip

FROM python:3.12-slim-trixie
LABEL org.opencontainers.image.title="deepseek-gateway" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 deepseek \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/deepseek-gateway deepseek \
    && install -d -m 700 -o deepseek -g deepseek /var/lib/deepseek-gateway
COPY --from=build /opt/deepseek /opt/deepseek
COPY deploy/docker/healthy.py /opt/deepseek/healthy.py
ENV PATH=/opt/deepseek/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_STATE_DIR=/var/lib/deepseek-gateway \
    GATEWAY_ACCESS_LOG=json
# Compiles what the base image has of the standard library as text only: on a read-only file system each start would.
RUN python /opt/deepseek/healthy.py; deepseek-gateway --version
USER 10001:10001
VOLUME /var/lib/deepseek-gateway
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s CMD ["python", "/opt/deepseek/healthy.py"]
ENTRYPOINT ["deepseek-gateway"]
CMD ["serve"]
