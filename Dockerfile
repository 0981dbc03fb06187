# syntax=docker/dockerfile:1
# A slim image that serves one model, baked in, as a user without rights. docs/containers.md
#   docker build -t matryo --build-arg MODEL=all-minilm-l6-v2 .
#   docker run -p 8080:8080 matryo
# The same lines build linux/amd64 and linux/arm64. Any Debian with Python 3.11 or newer and its venv
# may be the base.
ARG BASE=python:3.12-slim
# native: with the operators of matryo-native; onnxruntime: without.
ARG KERNELS=native

FROM ${BASE} AS tools
WORKDIR /srv/matryo
COPY requirements/image.lock requirements/image.lock
RUN python3 -m venv /opt/tools \
 && /opt/tools/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/image.lock

FROM tools AS kernels-native
RUN apt-get update && apt-get install -y --no-install-recommends g++
COPY native native
RUN PATH=/opt/tools/bin:$PATH python -m pip wheel --no-deps --no-build-isolation -w /kernels ./native

FROM tools AS kernels-onnxruntime
RUN mkdir /kernels

FROM kernels-${KERNELS} AS kernels

FROM tools AS build
RUN python3 -m venv /opt/venv
COPY requirements/run.lock requirements/run.lock
RUN /opt/venv/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/run.lock
COPY --from=kernels /kernels /kernels
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY app app
COPY models models
RUN find /kernels -name '*.whl' -exec /opt/venv/bin/python -m pip install --no-index {} + \
 && /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation .
# The model is pulled, verified and built here. The checkpoint itself stays behind. The vocabulary is
# for clients that send OpenAI's token ids.
ARG MODEL=nomic-embed-text-v1.5
ARG PRECISION=fp32
ARG KERNELS
ENV MATRYO_HOME=/var/lib/matryo
RUN /opt/venv/bin/matryo pull cl100k_base \
 && MATRYO_KERNELS="${KERNELS}" /opt/venv/bin/matryo build "${MODEL}" --precision "${PRECISION}" \
 && rm -rf "${MATRYO_HOME}/checkpoints" "${MATRYO_HOME}/locks"
# What neither a server nor a build of another model needs. transformers is a third of the environment.
RUN /opt/venv/bin/python -m pip uninstall -y -q \
      transformers editables hatchling pathspec pluggy setuptools trove-classifiers
# The list of what is in the environment: CycloneDX, with versions and licences.
RUN version=$(/opt/venv/bin/python -c 'import matryo; print(matryo.__version__)') \
 && sed -i "s/^dynamic = .*/version = \"$version\"/" pyproject.toml \
 && /opt/tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
      -o /opt/venv/sbom.cdx.json /opt/venv/bin/python
# Whoever runs the container has the group 0, as OpenShift has it, and owns no file.
RUN chgrp -R 0 "${MATRYO_HOME}" && chmod -R u=rwX,g=u,o=rX "${MATRYO_HOME}"

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
COPY --from=build /var/lib/matryo /var/lib/matryo
ARG MODEL=nomic-embed-text-v1.5
ARG PRECISION=fp32
ARG KERNELS
# HOME is for users that have no entry in /etc/passwd. The kernels are named, so that every machine
# gives the same vectors.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/var/lib/matryo \
    MATRYO_HOME=/var/lib/matryo \
    MATRYO_MODEL=${MODEL} \
    MATRYO_PRECISION=${PRECISION} \
    MATRYO_KERNELS=${KERNELS} \
    MATRYO_HOST=0.0.0.0 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:0
WORKDIR /var/lib/matryo
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["matryo", "health", "--ready"]
STOPSIGNAL SIGTERM
CMD ["matryo", "serve"]
ARG VERSION
ARG REVISION
ARG CREATED
ARG SOURCE
LABEL org.opencontainers.image.title="Matryo" \
      org.opencontainers.image.description="A server of OpenAI's /v1/embeddings for Matryoshka text models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
