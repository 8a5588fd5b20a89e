# make help lists the targets. A fresh machine needs only Python >= 3.11 (with venv) and make.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV := .venv
STAMP := $(VENV)/.installed
STARTED := $(VENV)/.installing

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow bench check clean reproduce-voc-mini

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## set up .venv with the package (editable) and the development tools

demo: install ## the whole pipeline on generated images, on the CPU, in minutes
	$(VENV)/bin/cam-pipeline demo

test: install ## the fast tests, in several processes; ARGS="..." goes to pytest ("-n 0": in one)
	$(VENV)/bin/python -m pytest -n auto --dist worksteal $(ARGS)

test-slow: install ## the tests marked slow; ARGS="..." goes to pytest
	$(VENV)/bin/python -m pytest -m slow $(ARGS)

bench: install ## what is claimed to be fast, against what it is compared with (tests/bench/)
	@for file in tests/bench/*.py; do $(VENV)/bin/python $$file || exit 1; done

check: install ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove caches and build products; .venv and outputs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

reproduce-voc-mini: need-DATA install ## DATA=folder [WEIGHTS=file] [ARGS="..."]: the voc-mini numbers of docs/results/voc-mini.md
	$(VENV)/bin/python docs/reproduce_voc_mini.py --data "$(DATA)" $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(ARGS)

.PHONY: need-DATA
need-DATA:
	@test -n "$(DATA)" || { echo "make: DATA is not set. Usage: make reproduce-voc-mini DATA=folder" >&2; exit 2; }

# pydensecrf2 compiles, so it may fail, and the install stands without it. Without a compiler only a wheel can help.
HEADERS := import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
define INSTALL_CRF
lacks=; \
command -v $${CXX:-c++} >/dev/null || lacks='no C++ compiler'; \
$(PYTHON) -c '$(HEADERS)' || lacks="$${lacks:-no Python.h}"; \
$(VENV)/bin/python -m pip install $${lacks:+--only-binary pydensecrf2} --editable '.[crf]' >$(VENV)/pydensecrf2.log 2>&1 \
    || echo "pydensecrf2 is not installed ($${lacks:-pip failed, see $(VENV)/pydensecrf2.log}): the CRF runs in torch."
endef

# Only a finished install leaves the stamp. The mark of an unfinished one makes the next call start afresh.
# The stamp keeps the time of the start, so an edit of setup.cfg during the install is not missed.
$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "make: $(PYTHON) is missing or older than 3.11. Set another: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(if $(wildcard $(STARTED)),--clear) $(VENV)
	@touch $(STARTED)
	$(VENV)/bin/python -m pip install --editable '.[dev]'
	@$(INSTALL_CRF)
	@mv $(STARTED) $(STAMP)
