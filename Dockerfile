# Three servers and the sandbox, each from Debian and PyPI alone, each as an unprivileged user on a read-only root.
#   docker build --target backend -t draftloop/backend .
#   docker build --target label-studio -t draftloop/label-studio .
#   docker build --target vllm-cpu -t draftloop/vllm-cpu .
#   docker build --target sandbox -t draftloop/sandbox .
# What they write goes to /data and /tmp. scripts/test --containers builds all four, runs docker-compose.yml and attacks
# the sandbox in its container.

# By digest, where one is given: scripts/pins --images writes it to .env for docker-compose.yml.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE} AS python
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONNOUSERSITE=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
# One for each server: the kernel counts a user's processes in all containers together, and code has a limit on them.
RUN for user in draftloop:10001 label-studio:10002 vllm:10003; do \
        groupadd --gid "${user#*:}" "${user%:*}" \
        && useradd --uid "${user#*:}" --gid "${user#*:}" --home-dir /data --no-create-home --shell /usr/sbin/nologin \
            "${user%:*}" || exit 1; \
    done
ENV HOME=/data
WORKDIR /srv

# ---------------------------------------------------------------- what generated code runs in
# What code may import besides: requirements/sandbox-extra.txt.
FROM python AS code
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg fonts-noto-cjk libseccomp2 nodejs \
    && rm -rf /var/lib/apt/lists/*
COPY scripts/setup scripts/
COPY requirements/sandbox.txt requirements/sandbox-extra.txt requirements/
RUN export DRAFTLOOP_HOME=/opt/draftloop \
    && scripts/setup sandbox \
    && ln -s "$(scripts/setup --print sandbox)" /opt/sandbox \
    && rm -rf /opt/draftloop/log \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data

# ---------------------------------------------------------------- the sandbox by itself; no server, no port
# scripts/sandbox_container starts it.
FROM code AS sandbox
COPY backend/draftloop/__init__.py backend/draftloop/errors.py backend/draftloop/
COPY backend/draftloop/runs backend/draftloop/runs
COPY backend/draftloop/sandbox backend/draftloop/sandbox
COPY backend/draftloop/support backend/draftloop/support
ENV PATH=/opt/sandbox/bin:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin \
    PYTHONPATH=/srv/backend PYTHONHASHSEED=0 LANG=C.UTF-8 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
USER 10001:10001
WORKDIR /
CMD ["python", "-P", "-s", "-m", "draftloop.sandbox", "--folder", "/data/sandbox"]

# ---------------------------------------------------------------- the backend, and the verbs that work on it
# It runs code that a human asks for, in a sandbox beside it. Open Interpreter, with which drafts are run unasked, is
# not in it.
FROM code AS backend
COPY requirements/backend.txt requirements/s3.txt requirements/
RUN python3 -m venv /opt/venv \
    && pip install --no-deps --require-hashes \
        --requirement requirements/backend.txt --requirement requirements/s3.txt
RUN pip check
COPY backend backend
COPY scripts scripts
COPY label_config label_config
RUN printf '#!/bin/sh\nexec python -P -m draftloop.cli "$@"\n' > /usr/local/bin/draftloop \
    && chmod 0755 /usr/local/bin/draftloop
ENV PYTHONPATH=/srv/backend:/srv \
    CACHE_URL=sqlite:////data/cache.sqlite3 \
    LEDGER_URL=sqlite:////data/draftloop.sqlite3 \
    EXECUTION=ask \
    SANDBOX_FOLDER=/data/sandbox \
    SANDBOX_PYTHON=/opt/sandbox/bin/python
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 9090
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9090/health', timeout=4)"]
CMD ["gunicorn", "draftloop.app:create_app()", "--workers=1", "--threads=64", \
     "--worker-class=draftloop.serving.server.Worker", "--timeout=120", "--no-control-socket", \
     "--worker-tmp-dir=/tmp", "--bind=0.0.0.0:9090"]

# ---------------------------------------------------------------- Label Studio, nothing of which phones home
FROM python AS label-studio
# scripts/setup knows how to build the pins that have no wheels.
COPY scripts/setup scripts/
COPY requirements/build.txt requirements/label-studio.txt requirements/
RUN export DRAFTLOOP_HOME=/opt/draftloop \
    && scripts/setup label-studio \
    && ln -s "$(scripts/setup --print label-studio)" /opt/venv \
    && rm -rf /opt/draftloop/log \
    && install --directory --owner 10002 --group 10002 --mode 0700 /data
# Empty, not absent, where absent means its maker's Sentry.
ENV LABEL_STUDIO_COLLECT_ANALYTICS=false \
    LABEL_STUDIO_FEATURE_FLAGS_OFFLINE=true \
    LABEL_STUDIO_FRONTEND_SENTRY_DSN="" \
    LABEL_STUDIO_LATEST_VERSION_CHECK=false \
    LABEL_STUDIO_SENTRY_DSN="" \
    LABEL_STUDIO_BASE_DATA_DIR=/data
USER 10002:10002
WORKDIR /data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=5s --start-period=240s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
CMD ["label-studio", "start", "--internal-host=0.0.0.0", "--port=8080", "--enable-legacy-api-token", "--no-browser"]

# ---------------------------------------------------------------- real vLLM on the CPU, for the embedded model
FROM python AS vllm-cpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
# scripts/setup knows what the CPU build needs besides its pins, and where its torch comes from.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY scripts/setup scripts/
COPY requirements/torch-cpu.txt requirements/vllm.txt requirements/
RUN export DRAFTLOOP_HOME=/opt/draftloop \
    && scripts/setup vllm \
    && ln -s "$(scripts/setup --print vllm)" /opt/venv \
    && rm -rf /opt/draftloop/log
# Without TORCH_COMPILE_DISABLE the first request for log-probabilities compiles C++, and the engine dies where
# there is no compiler.
ENV DO_NOT_TRACK=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    VLLM_DO_NOT_TRACK=1 \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_CPU_KVCACHE_SPACE=1 \
    TORCH_COMPILE_DISABLE=1 \
    HOME=/tmp
USER 10003:10003
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=240s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["vllm", "serve"]
