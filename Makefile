# make quickstart   install, fetch the 135M model, run configs/quickstart.yaml, say where the report is
# make test         install and run the whole suite, a real vLLM server included
# make install      only .venv
# make lint, make clean
#
# Without a GPU nothing CUDA is installed. With one, the GPU lock is taken.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := smollm2-135m-instruct
KIND := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
LOCK := requirements/$(KIND).lock
STAMP := $(VENV)/.installed-$(KIND)
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Byte-compiling 180 packages takes longer than unpacking them, and most are never imported.
INSTALL := $(PIP) install --quiet --no-deps --no-compile
TORCH_CPU := torch==2.13.0+cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
QUICKSTART := runs/quickstart

.PHONY: help install quickstart test lint clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(STAMP)

$(STAMP): $(LOCK) pyproject.toml
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
	touch $@; \
	echo "install: $$SECONDS s"

quickstart: install
	@SECONDS=0; $(BIN)/cai model fetch $(MODEL) >/dev/null; echo "fetch model: $$SECONDS s"
	@SECONDS=0; $(BIN)/cai run configs/quickstart.yaml run.dir=$(QUICKSTART); echo "run: $$SECONDS s"
	@echo "report: $(QUICKSTART)/report.html"

test: install
	@$(BIN)/cai model fetch $(MODEL) >/dev/null
	@$(BIN)/python -m pytest

lint: install
	@$(BIN)/ruff check cai tests

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
