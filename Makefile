# Developer verbs. Each works in a fresh clone with python3 (3.11 or newer) and make: the environment
# .venv is made on first use, and brought up to date when pyproject.toml or constraints.txt change.

PYTHON  ?= python3
# The torch to install; empty: the pinned one, which on Linux is the CPU build. An exported TORCH counts too.
TORCH   ?=
# Extra test processes, and what else pytest is told, e.g. PYTEST_ARGS="-k layers". None by default: on two
# cores they gain nothing, since each loads torch and what they run uses both cores anyway.
JOBS    ?= 0
PYTEST_ARGS ?=
PROFILE ?= jetson-orin
TASK    ?=
OUT     ?= runs/demo$(if $(TASK),-$(TASK))
DEMO_ARGS ?=
# Which benchmarks/bench_*.py to run; empty: all.
BENCH   ?=
BENCHES := $(patsubst benchmarks/bench_%.py,%,$(sort $(wildcard benchmarks/bench_*.py)))

EXTRAS  := export,cpu,nvml,dev
VENV    := .venv
PY      := $(VENV)/bin/python
# BASE changes when the tree moves or the interpreter changes: then .venv is made anew. DEPS changes with
# what is to be installed: then pip brings .venv up to date. No other time stamp is looked at.
BASE    := $(shell { pwd; $(PYTHON) -c 'import sys; print(sys.version, sys.base_prefix)'; } 2>&1 | cksum | tr ' ' '-')
DEPS    := $(shell { cat pyproject.toml constraints.txt; echo '$(TORCH)'; } | cksum | tr ' ' '-')
READY   := $(VENV)/.ready-$(BASE)-$(DEPS)
LINUX   := $(if $(filter Linux,$(shell uname -s)),==,!=)
PINNED  := $(or $(TORCH),$(shell sed -n 's/^torch==\([^;]*\); sys_platform $(LINUX) .*/\1/p' constraints.txt))
PLAIN   := $(firstword $(subst +, ,$(PINNED)))

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## deploy the embedded model for a board and show the report (PROFILE=, TASK=, OUT=, DEMO_ARGS=)
	@$(VENV)/bin/qslm-edge deploy --profile $(PROFILE) $(if $(TASK),--task $(TASK)) --out $(OUT) $(DEMO_ARGS) \
	  || { code=$$?; [ $$code -eq 3 ] || exit $$code; }

test: $(READY) ## run the tests (PYTEST_ARGS=, JOBS=)
	@$(if $(filter 0 1,$(JOBS)),,OMP_NUM_THREADS=1) $(PY) -m pytest -n $(JOBS) $(PYTEST_ARGS)

lint: $(READY) ## check style, types and layers
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@# What the base install runs, once more as Python 3.10, where numpy's types are poorer.
	@$(PY) -m mypy --python-version 3.10 --no-warn-return-any -p qslm_edge.runner -p qslm_edge.profiles
	@$(VENV)/bin/lint-imports --no-logo

format: $(READY) ## let ruff format the code and mend what it can
	@$(PY) -m ruff check --fix-only .
	@$(PY) -m ruff format .

bench: $(READY) ## run the benchmarks (BENCH=name for one); one that this machine cannot run says so
	@set -e; for script in $(if $(BENCH),benchmarks/bench_$(BENCH).py,$(sort $(wildcard benchmarks/bench_*.py))); do \
	  [ -f $$script ] || { echo "make: no such benchmark: $$script; there are $(BENCHES)" >&2; exit 2; }; \
	  echo "== $$script"; $(PY) $$script || { code=$$?; [ $$code -eq 4 ] || exit $$code; }; done

clean: ## remove .venv, caches and build products; runs/ stays
	@rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov .hypothesis .import_linter_cache \
	  .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

NO_TORCH = pip finds no torch $(PINNED) for this Python and machine. Next: check the network; or set \
PIP_EXTRA_INDEX_URL to the PyTorch project's index of CPU wheels, or PIP_FIND_LINKS to a folder that holds \
the wheel; or accept whatever build the index gives, perhaps a CUDA build of several GB: export TORCH=$(PLAIN)

# A stamp says that an install ended well. With none of this tree and interpreter there, the last install
# was cut short or made elsewhere, so what lies there is not to be trusted.
$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: Python 3.11 or newer is needed; found: $$($(PYTHON) --version 2>/dev/null || echo "no $(PYTHON)"). Next: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@ls $(VENV)/.ready-$(BASE)-* >/dev/null 2>&1 || { rm -rf $(VENV); \
	  echo "make: building $(VENV) (a few minutes the first time)"; \
	  $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: python -m venv failed; on Debian and Ubuntu: install python3-venv" >&2; exit 1; }; }
	@rm -f $(VENV)/.ready-*
	@if [ -z '$(TORCH)' ]; then cat constraints.txt; \
	  else grep -v '^torch==' constraints.txt; echo 'torch==$(TORCH)'; fi > $(VENV)/constraints.txt
	@# torch on its own: under constraints pip does not say which distribution is missing.
	@pip="$(PY) -m pip install -q --disable-pip-version-check"; log=$(VENV)/install.log; \
	pinned="$$pip -c $(VENV)/constraints.txt"; \
	{ $$pinned setuptools && $$pip --no-deps torch==$(PINNED) && \
	  $$pinned --no-build-isolation -e '.[$(EXTRAS)]'; } >$$log 2>&1 || { \
	  if grep -q 'No matching distribution found for torch' $$log; then echo "make: $(NO_TORCH)" >&2; \
	  else grep -v '^WARNING' $$log | tail -n 20 >&2; echo "make: pip could not install; all it said is in $$log" >&2; fi; \
	  exit 1; }
	@touch $@
