# make demo   from a fresh clone to tables, figures and report.html
# make mini   the same for the preset mini, in hours
# make test   lint, types, workflow checks, tests

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := demo
.PHONY: demo mini test figures redraw generated gl clean

PRESET ?= smoke
RIGHT := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(RIGHT)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
SNAKEMAKE = $(BIN)/snakemake --configfile configs/presets/$(PRESET).yaml
# The kernel drops this lock when its holder dies, so whoever has it may clear what a killed Snakemake left locked.
LOCKED := flock --nonblock --conflict-exit-code 75 .venv/lock
BUSY := { code=$$?; [ $$code -ne 75 ] || echo "Another make demo, or a job that a killed one left behind, is at work in this folder."; exit $$code; }

demo: .venv/installed gl
	@$(LOCKED) $(SHELL) $(.SHELLFLAGS) '\
	    if [ -n "$$(ls -A .snakemake/locks 2>/dev/null)" ]; then $(SNAKEMAKE) --unlock --quiet all; fi; \
	    $(SNAKEMAKE) --cores all; \
	    $(SNAKEMAKE) --report report.html --quiet all; \
	    echo; cat results/$(PRESET)/tables/gains.txt 2>/dev/null || true; \
	    echo; echo "Done. Open $$PWD/report.html" \
	' || $(BUSY)

mini: PRESET = mini
mini: demo

test: .venv/installed-dev gl
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 4 --no-loadscope-reorder # tests/conftest.py says which tests share a process

figures: .venv/installed # draw all tables and figures from the rows in results/reference/, without simulating
	@for folder in $$(find results/reference -mindepth 1 -maxdepth 1 -type d ! -name libero_plus); do \
	    $(BIN)/srpo draw all $$folder --out results/figures/$${folder##*/}; \
	done

redraw: .venv/installed # draw all tables and figures of a finished preset again
	$(SNAKEMAKE) --cores all --forcerun $$($(BIN)/srpo draw list)

generated: .venv/installed-dev # after a change of srpo/config/, configs/base.yaml or the schemas in srpo/results/
	$(SNAKEMAKE) --cores 1 --force generated

.venv/installed: pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "srpo needs Python 3.11 or 3.12. Install one, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv || { echo "Python's venv module is missing. Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# LIBERO renders through OSMesa or EGL. Where neither is there, Debian's OSMesa is installed if that is allowed.
gl: .venv/installed
	@if ! $(BIN)/python -m srpo.envs >/dev/null 2>&1 \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    (apt-get update && apt-get install --yes libosmesa6) >/dev/null || true; fi
	@$(BIN)/python -m srpo.envs

clean: # everything but results/
	rm -rf .venv .snakemake scratch report.html .mypy_cache .pytest_cache .ruff_cache .hypothesis
