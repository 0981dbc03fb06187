# syntax=docker/dockerfile:1
# A slim image that serves one model, baked in, as a user without rights.
#   docker build -t matryo --build-arg MODEL=all-minilm-l6-v2 .
#   docker run -p 8080:8080 matryo
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /srv/matryo
RUN python3 -m venv /opt/venv
COPY requirements/run.lock requirements/run.lock
RUN /opt/venv/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/run.lock
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY app app
COPY models models
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation .
# The model is pulled, verified and built here; the checkpoint itself stays behind. So is the
# vocabulary of the token ids that some clients send.
ARG MODEL=nomic-embed-text-v1.5
ARG PRECISION=fp32
ENV MATRYO_HOME=/var/lib/matryo
RUN /opt/venv/bin/matryo pull cl100k_base \
 && /opt/venv/bin/matryo build "${MODEL}" --precision "${PRECISION}" \
 && rm -rf "${MATRYO_HOME}/checkpoints" "${MATRYO_HOME}/locks"
# Serving never needs it, and it is a third of the environment.
RUN /opt/venv/bin/python -m pip uninstall -y -q transformers

FROM ${BASE}
RUN useradd --system --uid 10001 --create-home matryo
COPY --from=build /opt/venv /opt/venv
COPY --from=build --chown=10001:0 /var/lib/matryo /var/lib/matryo
ARG MODEL=nomic-embed-text-v1.5
ARG PRECISION=fp32
ENV PATH=/opt/venv/bin:$PATH \
    MATRYO_HOME=/var/lib/matryo \
    MATRYO_MODEL=${MODEL} \
    MATRYO_PRECISION=${PRECISION} \
    MATRYO_HOST=0.0.0.0 \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1
USER 10001
EXPOSE 8080
# http.client asks no proxy, whatever http_proxy says.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python3", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('MATRYO_PORT') or 8080), timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
CMD ["matryo", "serve"]
