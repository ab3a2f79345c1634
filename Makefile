# Everything runs in .venv, which the first target makes; run `make` for the list of targets.
#   PYTHON=python3.12            the interpreter .venv is made with (>= 3.10)
#   ARGS="-k scheduler -x"       passed on to the demo, or to pytest
#   PIP_ARGS="--index-url ..."   passed on to pip install, for instance to choose another build of torch

PYTHON ?= python3
ARGS ?=
PIP_ARGS ?=

VENV := .venv
OLDEST := .venv-oldest
VENV_PYTHON := $(VENV)/bin/python
MINIMUM := 3.10
TOO_OLD := import sys; sys.exit(sys.version_info < tuple(map(int, "$(MINIMUM)".split("."))))
PIP_INSTALL = $(@D)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c $(filter constraints%,$^)
BROWSER = $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
PYTEST := -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-oldest bench docs style quality coverage clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/base.stamp  ## train a small model and sample from it (ARGS=...)
	@$(VENV_PYTHON) scripts/demo.py $(ARGS)

test: $(VENV)/test.stamp  ## the quick tests, a file per process at a time (ARGS=...)
	@$(VENV_PYTHON) $(PYTEST) $(ARGS)

test-slow: $(VENV)/$(if $(BROWSER),browser,test).stamp  ## the tests that take minutes (ARGS=...)
	@$(VENV_PYTHON) -m pytest -m slow $(ARGS)

test-oldest: $(OLDEST)/test.stamp  ## the quick tests on the oldest versions of all libraries (ARGS=...)
	@$(OLDEST)/bin/python $(PYTEST) $(ARGS)

bench: $(VENV)/test.stamp  ## the benchmarks; results in benchmarks/results
	@$(VENV_PYTHON) benchmarks/training_step.py --threads 1 --growth --output benchmarks/results/training_step.md
	@$(VENV_PYTHON) benchmarks/head.py --output benchmarks/results/head.md
	@$(VENV_PYTHON) benchmarks/packing.py --output benchmarks/results/packing.md
	@$(VENV_PYTHON) benchmarks/sampling.py --threads 1 --growth --output benchmarks/results/sampling.md
	@$(VENV_PYTHON) benchmarks/evaluation.py --threads 1 --output benchmarks/results/evaluation.md
	@$(VENV_PYTHON) benchmarks/digits.py --output benchmarks/results/digits.md

docs: $(VENV)/docs.stamp  ## build the documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --quiet --strict $(ARGS)
	@echo "The first page is site/index.html; $(VENV_PYTHON) -m http.server -d site shows all."

style: $(VENV)/dev.stamp  ## format the code and fix what ruff can fix
	@$(VENV_PYTHON) -m ruff check --fix-only --quiet .
	@$(VENV_PYTHON) -m ruff format .

quality: $(VENV)/dev.stamp  ## check style and types
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy src

coverage: $(VENV)/test.stamp  ## the quick tests with coverage; the report is in htmlcov/ (ARGS=...)
	@$(VENV_PYTHON) -m pytest --cov=md4_hf --cov-report=term --cov-report=html $(ARGS)

clean:  ## remove build products and caches
	rm -rf build dist site htmlcov .hypothesis .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find src tests scripts benchmarks metrics -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## also remove .venv and .venv-oldest
	rm -rf $(VENV) $(OLDEST)

# A stamp is written last, so that an interrupted installation is taken up again. The larger sets contain the smaller.

$(VENV)/created.stamp $(OLDEST)/created.stamp:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: no '$(PYTHON)' here. Install Python >= $(MINIMUM) or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c '$(TOO_OLD)' || { \
	  echo "error: md4_hf needs Python >= $(MINIMUM), and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1)." \
	  "Name a newer one: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@$(@D)/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(@D)
	@$(@D)/bin/python -c '$(TOO_OLD)' || { \
	  echo "error: $(@D) holds $$($(@D)/bin/python -V 2>&1), md4_hf needs Python >= $(MINIMUM). Run: make distclean" >&2; exit 1; }
	@touch $@

$(VENV)/base.stamp: $(VENV)/created.stamp pyproject.toml constraints.txt
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/created.stamp pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[test]'
	@touch $(VENV)/base.stamp $@

$(VENV)/browser.stamp: $(VENV)/created.stamp pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[test,browser]'
	@touch $(VENV)/base.stamp $(VENV)/test.stamp $@

$(VENV)/dev.stamp: $(VENV)/created.stamp pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/base.stamp $(VENV)/test.stamp $@

$(VENV)/docs.stamp: $(VENV)/created.stamp pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[docs]'
	@touch $(VENV)/base.stamp $@

$(OLDEST)/test.stamp: $(OLDEST)/created.stamp pyproject.toml constraints-oldest.txt
	$(PIP_INSTALL) -e '.[test]'
	@touch $@
