# syntax=docker/dockerfile:1.12
# Targets: api (no torch), worker (CUDA by torch's own libraries; the host brings the driver).
FROM python:3.12.8-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# poppler turns PDF pages into pixels; its version is the distribution's, which patches it. The fonts are for PDFs
# that embed none: the base fonts, and 5 MB for Chinese, Japanese and Korean
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends poppler-utils poppler-data \
        fonts-urw-base35 fonts-dejavu-core fonts-wqy-microhei \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin rtprune \
    && install --directory --owner rtprune --group rtprune /data /blobs /cache /models
WORKDIR /app
ENV RTPRUNE_DATA_DIR=/data TMPDIR=/tmp HOME=/tmp

# The package, with the command rtprune
FROM base AS wheel
RUN pip install setuptools==84.2.1
COPY pyproject.toml README.md LICENSE ./
COPY rtprune ./rtprune
COPY app ./app
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM base AS api
COPY docker/requirements-api.txt ./docker/
RUN pip install --requirement docker/requirements-api.txt
# without what it declares: torch is for workers
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps --no-index /wheels/*.whl
ENV RTPRUNE_HOST=0.0.0.0 RTPRUNE_PORT=8000 RTPRUNE_EMBEDDED_WORKER=false
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["rtprune", "serve"]

FROM base AS worker
ARG TORCH_INDEX_URL=""
# Triton builds a launcher for each kernel with it
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY docker/requirements-api.txt docker/requirements-worker.txt ./docker/
# with an index of CPU builds, torch comes from there and is a tenth of the size
RUN if [ -n "$TORCH_INDEX_URL" ]; then \
        pip install --index-url "$TORCH_INDEX_URL" "$(grep '^torch==' docker/requirements-worker.txt)"; \
    fi \
    && pip install --requirement docker/requirements-worker.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps --no-index /wheels/*.whl
# a volume at /cache keeps what the hub was asked for, and kernels; one at /models brings checkpoints
ENV HF_HOME=/cache/huggingface TRITON_CACHE_DIR=/cache/triton RTPRUNE_DEVICE=cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=20s --start-period=15m CMD ["python", "-m", "app.jobs.healthcheck"]
STOPSIGNAL SIGTERM
CMD ["rtprune", "worker"]
