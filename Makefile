# The commands you live in. Everything sets up .venv by itself: `make study STRATEGY=1` in a fresh clone is enough.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# ---- options -------------------------------------------------------------------------------------
OPTIONS := STRATEGY STUDY SEEDS WORKERS DATA CHECKPOINT ENGINE OUT SET ARGS PYTHON EXTRAS
given := $(foreach v,$(.VARIABLES),$(if $(filter command,$(origin $v)),$v))
unknown := $(filter-out $(OPTIONS) MAKEFLAGS MFLAGS MAKEOVERRIDES SHELL,$(given))
ifneq ($(unknown),)
$(error unknown option $(firstword $(unknown)); allowed: $(OPTIONS))
endif

OUT ?= runs
study = $(if $(STUDY),$(STUDY),$(if $(STRATEGY),strategy$(STRATEGY),$(error which study? make $@ STRATEGY=1 (or 2, 3), or STUDY=path/to/study.yaml)))
options = --out '$(OUT)' $(foreach d,$(DATA),--data '$(d)') $(if $(CHECKPOINT),--checkpoint '$(CHECKPOINT)') \
	$(if $(SEEDS),--seeds $(SEEDS)) $(foreach s,$(SET),--set '$(s)')
run_options = $(if $(WORKERS),--workers $(WORKERS)) $(if $(ENGINE),--engine $(ENGINE)) $(ARGS)

# ---- environment ---------------------------------------------------------------------------------
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# one BLAS/OpenMP thread per process: workers are processes, and oversubscribed threads cost up to 9x
export OMP_NUM_THREADS ?= 1

.PHONY: help setup study smoke ui report results test test-all test-engines check bench

help: ## this list
	@echo 'make study STRATEGY=1   train the arms of strategy 1, rank them, write the report'
	@echo 'make test               the test suite, the smoke study included'
	@echo
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  %-10s %s\n", $$1, $$2}'
	@echo
	@echo 'options: STRATEGY=1|2|3 or STUDY=file.yaml; SEEDS=3 WORKERS=2 DATA=/path/to/CULane'
	@echo '         CHECKPOINT=/path/to/clrernet.pth ENGINE=pool OUT=runs SET="path=value path=value"'

$(STAMP): pyproject.toml constraints.txt
	@python=''; for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "make: Python 3.11 or newer is needed; found: $$(python3 --version 2>&1 || echo none). Install it, or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; fi; \
	echo "Setting up $(VENV) with $$($$python --version) and the pins of constraints.txt (once, some minutes) ..."; \
	$$python -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(STAMP) ## make .venv with the pinned packages; EXTRAS=ray or slurm or ray,slurm: with those engines
	@$(if $(EXTRAS),$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]')

# ---- studies -------------------------------------------------------------------------------------
study: $(STAMP) ## run a study, print the ranking, write the report
	@$(BIN)/ablate run '$(study)' $(options) $(run_options)

smoke: $(STAMP) ## a whole study in under a minute
	@$(BIN)/ablate run smoke $(options) $(run_options)

ui: $(STAMP) ## MLflow's page with this study's configs side by side
	@$(BIN)/ablate ui '$(if $(STUDY)$(STRATEGY),$(study),strategy1)' $(options)

report: $(STAMP) ## write the report again
	@$(BIN)/ablate report '$(study)' $(options)

results: $(STAMP) ## every table and figure of RESULTS.md again, from the result tables shipped
	@$(BIN)/python studies/rebuild.py $(ARGS)

# ---- development ---------------------------------------------------------------------------------
test: $(STAMP) ## the test suite with the smoke study (at most 10 minutes)
	@$(BIN)/python -m pytest -m 'not long' $(ARGS)

test-all: $(STAMP) ## the long tests too: fault injection, browser, trained faults
	@$(BIN)/python -m pytest $(ARGS)

test-engines: $(STAMP) ## every engine: installs the extras, then Ray clusters and a Slurm on this machine
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray,slurm]'
	@$(BIN)/python -m pytest tests/ablate/test_conformance.py tests/ablate/test_ray.py tests/ablate/test_slurm.py $(ARGS)

check: $(STAMP) ## format, lint, types, imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright

bench: $(STAMP) ## all benchmarks, into bench/RESULTS.md (ARGS=--quick: a third of the time)
	@$(BIN)/python -m bench $(ARGS)
