# make quickstart   install, fetch the 135M model, run configs/quickstart.yaml, say where the report is
# make test         install and run the whole suite, a real vLLM server included
# make install      only .venv
# make lint         ruff
# make bench        the benchmarks
# make clean        remove .venv and caches; runs and fetched models stay
#
# Without a GPU nothing CUDA is installed. With one, the GPU lock is taken. make PYTHON=python3.12 names another Python.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Of the Pythons here the first that is new enough; python3, to be told what is wrong with it, where none is.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
MODEL := smollm2-135m-instruct
KIND := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
LOCK := requirements/$(KIND).lock
# Named by content, so that a checkout that only touches the files installs nothing again.
STAMP := $(VENV)/.installed-$(KIND)-$(shell cat $(LOCK) pyproject.toml | sha256sum | cut -c1-16)
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --progress-bar off --no-deps --no-compile
# pip byte-compiles on one core. Done after it on all of them, without what is hardly ever imported, it takes half the
# time, and it saves every later start of a server 20 s.
COMPILE := $(BIN)/python -m compileall -q -j 0 -x '/tests?/|/testing/|/transformers/models/' $(VENV)/lib
# Where it is set, every process would compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE
TORCH_CPU := torch==2.13.0+cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
QUICKSTART := runs/quickstart
# Processes that share the test files among them. One that has models in it takes 2 GB, so this is not one per core.
WORKERS ?= 2

.PHONY: help install quickstart browser test lint bench clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "cai needs Python 3.11 or newer, found $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) lacks the venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "install: $(LOCK) into $(VENV)"
	@SECONDS=0; \
	$(PYTHON) -m venv $(VENV); \
	if [ $(KIND) = cpu ]; then \
	  $(INSTALL) '$(TORCH_CPU)' 2>/dev/null || $(INSTALL) --extra-index-url $(TORCH_CPU_INDEX) '$(TORCH_CPU)'; \
	fi; \
	$(INSTALL) -r $(LOCK); \
	$(INSTALL) --no-build-isolation -e .; \
	$(COMPILE) >/dev/null || true; \
	rm -f $(VENV)/.installed-*; \
	touch $@; \
	echo "install: $$SECONDS s"

quickstart: install
	@SECONDS=0; $(BIN)/cai model fetch $(MODEL) >/dev/null; echo "fetch model: $$SECONDS s"
	@SECONDS=0; $(BIN)/cai run configs/quickstart.yaml run.dir=$(QUICKSTART); echo "run: $$SECONDS s"
	@echo "report: $(QUICKSTART)/report.html"

# The viewer is tested in a real browser: Debian's. Who cannot install it runs the suite without those tests.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "install: chromium" && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium \
	  >/dev/null 2>&1; } || echo "no Chromium: the browser tests will be skipped (apt-get install chromium)"

test: install browser
	@$(BIN)/cai model fetch $(MODEL) >/dev/null
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: install
	@$(BIN)/ruff check cai bench tests

bench: install
	@$(BIN)/cai model fetch $(MODEL) >/dev/null
	@$(BIN)/python -m bench
	@$(BIN)/python -m bench.plot

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
