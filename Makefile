# make demo   from a fresh clone to tables, figures and report.html
# make mini   the same for the preset mini, in half a day
# make test   lint, types, workflow checks, tests
# make lock   write every version into requirements/ and environment.yml, from pyproject.toml

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := demo
.PHONY: demo mini test figures redraw generated lock docs gl clean

PRESET ?= smoke
RIGHT := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(RIGHT)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode
# The lock is complete, so nothing is resolved, and it has hashes, so a file that is not PyPI's is refused.
LOCKED_AS := --no-deps --require-hashes --requirement
# uv takes half as long. It asks PyPI and does not read pip.conf: where it fails, or is not to be had, pip installs.
from_lock = $(UV) $(LOCKED_AS) $(1) || $(PIP) $(LOCKED_AS) $(1)
# PyTorch's build: cpu without an NVIDIA device. For nodes that have one: rm -rf .venv, make TORCH=cuda .venv/installed
TORCH ?= $(if $(wildcard /dev/nvidiactl),cuda,cpu)
CPU_INDEX := https://download.pytorch.org/whl/cpu
COMPILE := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 $(UPGRADE)
SNAKEMAKE = $(BIN)/snakemake --configfile configs/presets/$(PRESET).yaml
# Two trainings side by side take less time than one after the other, each on all cores, and what follows begins on the
# half of the first to end. All wait for SFT: it takes two cores however many there are, for the last bits of its sums
# depend on their number. (With one core Snakemake gives it one, and another policy comes out.)
EACH = $(shell n=$$(env -u OMP_NUM_THREADS nproc); echo $$(( n > 1 ? n / 2 : 1 )))
THREADS = sft=2 $(foreach rule,train evaluate plus_shard trajectories score values,$(rule)=$(EACH))
# The kernel drops this lock when its holder dies, so whoever has it may clear what a killed Snakemake left locked.
LOCKED := flock --nonblock --conflict-exit-code 75 .venv/lock
BUSY := { code=$$?; [ $$code -ne 75 ] || echo "Another make demo, or a job that a killed one left behind, is at work in this folder."; exit $$code; }

demo: .venv/installed gl
	@$(LOCKED) $(SHELL) $(.SHELLFLAGS) '\
	    if [ -n "$$(ls -A .snakemake/locks 2>/dev/null)" ]; then $(SNAKEMAKE) --unlock --quiet all; fi; \
	    $(SNAKEMAKE) --cores all --set-threads $(THREADS); \
	    $(SNAKEMAKE) --report report.html --quiet all; \
	    echo; cat results/$(PRESET)/tables/gains.txt 2>/dev/null || true; \
	    echo; echo "Done. Open $$PWD/report.html" \
	' || $(BUSY)

mini: PRESET = mini
mini: THREADS = train=1 evaluate=1
mini: demo

test: .venv/installed-dev gl
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 4 --no-loadscope-reorder # tests/conftest.py says which tests share a process

figures: .venv/installed # draw all tables and figures from the rows in results/reference/, without simulating
	@for folder in $$(find results/reference -mindepth 1 -maxdepth 1 -type d ! -name libero_plus); do \
	    $(BIN)/srpo draw all $$folder --allow-incomplete --out results/figures/$${folder##*/}; \
	done

redraw: .venv/installed # draw all tables and figures of a finished preset again
	$(SNAKEMAKE) --cores all --resources gpu=0 --forcerun $$($(BIN)/srpo draw list)

generated: .venv/installed-dev # after a change of srpo/config/, configs/base.yaml or the schemas in srpo/results/
	$(SNAKEMAKE) --cores 1 --force generated

# Versions that still do are kept; to take newer ones: make lock UPGRADE=--upgrade. What run.txt has is not repeated
# in the other files, but for what it has on Windows alone.
lock: .venv/installed-dev
	$(COMPILE) --group install --output-file requirements/install.txt
	$(COMPILE) pyproject.toml --output-file requirements/run.txt
	for extra in dev docs; do \
	    $(COMPILE) pyproject.toml --extra $$extra --constraints requirements/run.txt --output-file requirements/$$extra.txt \
	        $$(sed -nE "/; sys_platform == 'win32'/!s/^([a-z][^=]*)==.*/--no-emit-package \1/p" requirements/run.txt); \
	done
	sed -i '/^ *- pip:/q' environment.yml
	sed -nE 's/^([a-z].*) \\$$/      - \1/p' requirements/run.txt >> environment.yml

docs: .venv/installed # the site, in site/
	$(call from_lock,requirements/docs.txt)
	$(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml requirements/run.txt requirements/install.txt
	@[ -n "$(PYTHON)" ] || { echo "srpo needs Python 3.11 or 3.12. Install one, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv || { echo "Python's venv module is missing. Debian: apt-get install python3-venv"; exit 1; }
	$(PIP) $(LOCKED_AS) requirements/install.txt || echo "uv cannot be had: pip installs"
	@torch=$$(sed -nE 's/^(torch==[^ ]+).*/\1/p' requirements/run.txt); \
	if [ $(TORCH) = cpu ] && $(PIP) --no-deps --retries 1 --timeout 15 --extra-index-url $(CPU_INDEX) "$$torch+cpu" 2>.venv/cpu-build.log; then \
	    echo "PyTorch: the CPU build, since there is no NVIDIA device here (otherwise: rm -rf .venv, make TORCH=cuda .venv/installed)"; \
	    awk '/^[a-z]/ { wanted = !/^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/ } wanted' requirements/run.txt > .venv/requirements.txt; \
	else \
	    [ $(TORCH) = cuda ] || echo "PyTorch's CPU build cannot be had (.venv/cpu-build.log)"; \
	    echo "PyTorch: the CUDA build, several gigabytes with NVIDIA's libraries"; \
	    cp requirements/run.txt .venv/requirements.txt; \
	fi
	$(call from_lock,.venv/requirements.txt)
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements/dev.txt
	$(call from_lock,requirements/dev.txt)
	touch $@

# LIBERO renders through OSMesa or EGL. Where neither is there, Debian's OSMesa is installed if that is allowed.
gl: .venv/installed
	@if ! $(BIN)/python -m srpo.envs >/dev/null 2>&1 \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    (apt-get update && apt-get install --yes libosmesa6) >/dev/null || true; fi
	@$(BIN)/python -m srpo.envs

clean: # the environment, caches, Snakemake's records, and scratch/: unfinished trainings start anew
	rm -rf .venv .snakemake scratch report.html .mypy_cache .pytest_cache .ruff_cache .hypothesis
