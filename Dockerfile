# Three images from one file: `service` (the API, no torch), `inspect` (the API with /v1/inspect) and `worker` (the jobs).
#   docker build --target service -t layerdrift-service .
#   docker build --target inspect -t layerdrift-inspect .
#   docker build --target worker  -t layerdrift-worker-cuda .
#   docker build --target worker  -t layerdrift-worker  --build-arg TORCH_INDEX=<an index with PyTorch for CPUs> .
# With `--sbom=true --provenance=mode=max`, buildx writes down what is in an image and how it was built; `make sbom` says
# it without an image. Nothing here is compiled by Triton, so no image has a compiler.
FROM python:3.11-slim-bookworm AS wheels
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt requirements.lock ./
# what the lock names, each file held against its hash; PyTorch by its version, for its builds have hashes of their own
RUN pip download --no-deps --require-hashes -r requirements.lock -d /wheels
FROM wheels AS torch
# PyTorch's builds for CPUs alone, which are much smaller, are on an index of PyTorch's own; without one: for CUDA
ARG TORCH_INDEX=""
RUN pip download -c constraints.txt torch -d /torch --find-links /wheels ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
# each process counts for Prometheus in files of its own
RUN install -d -m 1777 /tmp/metrics
ENV PROMETHEUS_MULTIPROC_DIR=/tmp/metrics
RUN useradd --create-home --uid 10001 layerdrift && install -d -o layerdrift /var/lib/layerdrift
ENV LAYERDRIFT_HOME=/var/lib/layerdrift
COPY pyproject.toml ./
COPY clients/pyproject.toml clients/README.md clients/
COPY clients/layerdrift clients/layerdrift
COPY backends backends
COPY service service
COPY workers workers
COPY deploy deploy

FROM base AS service
RUN --mount=from=wheels,source=/wheels,target=/wheels \
    pip install --no-index --find-links /wheels ./clients '.[service,otel]'
USER layerdrift
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
CMD ["python", "-m", "service.main"]

FROM base AS inspect
RUN --mount=from=wheels,source=/wheels,target=/wheels --mount=from=torch,source=/torch,target=/torch \
    pip install --no-index --find-links /wheels --find-links /torch './clients[render]' '.[service,worker,otel]'
USER layerdrift
ENV HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
CMD ["python", "-m", "service.main"]

FROM base AS worker
RUN --mount=from=wheels,source=/wheels,target=/wheels --mount=from=torch,source=/torch,target=/torch \
    pip install --no-index --find-links /wheels --find-links /torch './clients[render]' '.[worker,otel]'
USER layerdrift
ENV HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# large freed tensors go back to the system, as in deploy/embedded/stack.py
ENV MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=134217728 MALLOC_ARENA_MAX=2
# and a GPU's memory is not split into pieces that nothing fits
ENV PYTORCH_ALLOC_CONF=expandable_segments:True
# open from when the worker listens to its queues
ENV LAYERDRIFT_METRICS_PORT=9100
HEALTHCHECK --start-period=2m CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9100/metrics')"]
STOPSIGNAL SIGQUIT
CMD ["python", "-m", "celery", "-A", "workers.main", "worker", "--loglevel=INFO", "--without-gossip", "--without-mingle"]
