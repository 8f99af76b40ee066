# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
WHEEL_VENV := .venv-wheel
UV_VERSION := 0.13.9
STAMP := $(VENV)/.synced
DEPLOY_STAMP := $(VENV)/.deploy
# Tests of one group share expensive processes and stay on one worker; the rest goes wherever there is room.
PYTEST_ARGS ?= -n auto --dist loadgroup
SECONDS ?= 60

.PHONY: demo test lint types contracts unit wheel installed slow test-all fuzz setup clean bench vectors

setup: $(STAMP)
# Without ensurepip, which some systems leave out of Python: the system's pip installs uv, and uv everything else.
$(STAMP): pyproject.toml uv.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV) || python3 -m venv --without-pip $(VENV)
	@test -x $(BIN)/uv || $(PYTHON) -m pip --python $(BIN)/python install --quiet uv==$(UV_VERSION) \
	  || python3 -m pip --python $(BIN)/python install --quiet uv==$(UV_VERSION)
	UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --quiet --inexact --compile-bytecode
	@$(BIN)/python -m compileall -q src
	@touch $@

demo: setup
	$(BIN)/cloister demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

# Helm and the schemas of Kubernetes, for the tests of deploy/helm (group `deploy`).
$(DEPLOY_STAMP): $(STAMP)
	UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --quiet --inexact --group deploy
	@touch $@

# Everything but the slow tests, on the source tree. The end-to-end tests come after it, on what is really installed.
unit: setup $(DEPLOY_STAMP)
	$(BIN)/pytest $(PYTEST_ARGS) -m "not slow" --ignore tests/e2e

# The wheel, in an environment that has never seen the source tree: a file missing from it is missing here too.
wheel: setup
	rm -rf dist
	$(BIN)/uv build --quiet --wheel --out-dir dist
	UV_PROJECT_ENVIRONMENT=$(WHEEL_VENV) $(BIN)/uv sync --frozen --quiet --inexact --compile-bytecode --no-install-project \
	  --python $(BIN)/python
	$(BIN)/uv pip install --quiet --python $(WHEEL_VENV)/bin/python --no-deps --reinstall dist/*.whl

installed: wheel
	CLOISTER_TEST_INSTALLED=1 $(WHEEL_VENV)/bin/python -P -m pytest $(PYTEST_ARGS) -m "not slow" tests/e2e

test: lint types contracts unit installed

slow: setup
	$(BIN)/pytest $(PYTEST_ARGS) -m slow

# The slow tests, then everything on each Python that is supported. ALLOW_MISSING=1: without those that are not here.
test-all: lint types contracts slow
	UV=$(BIN)/uv tests/every_python.sh

# Each fuzz target for so many seconds, on what pip can install of libFuzzer (group `fuzz`).
fuzz: setup
	UV_PROJECT_ENVIRONMENT=.venv-fuzz $(BIN)/uv sync --frozen --quiet --inexact --group fuzz
	.venv-fuzz/bin/python -P tests/fuzz/run.py --seconds $(SECONDS)

# The images, on a base made of Debian's packages where IMAGE_BASE names none; and the tests of them on a real engine.
IMAGE ?= localhost/cloister:test
GATEWAY_IMAGE ?= localhost/cloister-gateway:test
image: setup
	deploy/image/engine.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python deploy/image/build.py --tag $(IMAGE) --control-tag $(GATEWAY_IMAGE) \
		$(if $(IMAGE_BASE),--base $(IMAGE_BASE),--debian-base)

test-image: image
	UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --quiet --inexact --group compose
	CLOISTER_TEST_IMAGE=$(IMAGE) CLOISTER_TEST_GATEWAY_IMAGE=$(GATEWAY_IMAGE) CLOISTER_TEST_IMAGE_REQUIRED=1 \
		$(BIN)/pytest -k image tests/integration/image tests/contract/openwhisk

# The chart on a real cluster, where KUBECONFIG names one; docs/how-to/kubernetes.md says what it needs.
test-kubernetes: setup $(DEPLOY_STAMP)
	CLOISTER_TEST_KUBECONFIG="$(KUBECONFIG)" $(BIN)/pytest -n 0 -v -rs tests/integration/kubernetes
	@test -n "$(KUBECONFIG)" || echo "test-kubernetes: NOT RUN on any cluster: set KUBECONFIG" >&2

clean:
	rm -rf $(VENV) .venv-wheel .venv-fuzz .venv-3.* dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
