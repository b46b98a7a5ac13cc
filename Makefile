# Bare `make` prints this help. Every target sets up what it needs in .venv; none needs root.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARALLEL := -n 2
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo chat test deep check bench wheel

help: ## print this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the project and its development tools
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("hetero_sd needs Python 3.11 to 3.14 on the host, %s is %s; say PYTHON=... " % (sys.executable, sys.version.split()[0])) if not (3, 11) <= sys.version_info[:2] <= (3, 14) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup ## compile the example pair, calibrate this machine with it, translate, print predicted beside measured
	$(BIN)/python examples/translation/demo.py

chat: setup ## download a small real model, compile it for this machine, and talk to it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[chat]'
	$(BIN)/python examples/chat/chat.py

test: setup ## run the tests but for the deep ones (12 minutes on two Zen 5 cores, 30 on older ones; an emulated board where it can be built)
	$(BIN)/python -m pytest $(PARALLEL) -m 'not deep'

deep: setup ## run the deep tests: 10,000 damaged files, every coverage cell, long emulated runs, a fuzzer's ten minutes (20 on two Zen 5 cores)
	$(BIN)/python -m pytest $(PARALLEL) -m deep

check: setup ## ruff, mypy and `make test`
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PARALLEL) -m 'not deep'

bench: setup ## print the benchmarks
	$(BIN)/python benchmarks/decode.py

wheel: setup ## build dist/*.whl, the OpenCL runtime for x86-64 and AArch64 in it
	HSD_WHEEL_LIBRARIES=require $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
