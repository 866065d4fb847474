# The gateway alone. Build from the repository's root: docker build -f deploy/docker/gateway.Dockerfile -t deepseek-gateway .
FROM python:3.12-slim AS build
WORKDIR /src
COPY packages/client packages/client
COPY packages/gateway packages/gateway
RUN python -m venv /opt/deepseek \
    && /opt/deepseek/bin/pip install --no-cache-dir ./packages/client "./packages/gateway[postgres,redis,retention,otel,oidc]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/deepseek-gateway --create-home deepseek
COPY --from=build /opt/deepseek /opt/deepseek
ENV PATH=/opt/deepseek/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_STATE_DIR=/var/lib/deepseek-gateway \
    GATEWAY_ACCESS_LOG=json
USER 10001
VOLUME /var/lib/deepseek-gateway
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=2s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
ENTRYPOINT ["deepseek-gateway"]
CMD ["serve"]
