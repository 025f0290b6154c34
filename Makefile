# Each target works as the first command on a fresh clone: all of them stand on the stamp file
# that `setup` writes when .venv holds what pyproject.toml and constraints.txt ask for.
#
#   make setup [TORCH=cpu|cuda] [PIP_ARGS="..."] [PYTHON=python3.12]
#   make demo | test | test-fast | check | bench | protos | down

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
# Without bytecode on disk every process compiles all of it again: 9 s of CPU in the tests' collection alone.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
# What was chosen once stays chosen until another TORCH is named.
TORCH ?= $(or $(shell cat $(VENV)/.torch 2>/dev/null),cpu)
PIP_ARGS ?=
PYTHON ?=
STAMP := $(VENV)/.installed-$(TORCH)

# A local version counts as newer, so the plain pin takes 2.13.0+cpu where an index offers it.
TORCH_PIN := $(shell grep -m1 '^torch==' constraints.txt)
TORCH_cpu := $(TORCH_PIN)
TORCH_cuda := $(TORCH_PIN),!=$(subst torch==,,$(TORCH_PIN))+cpu
# Builds of torch for a GPU bring Triton; beside the others it interprets the kernels in the tests (Linux only).
TRITON_cpu := $(if $(filter Linux,$(shell uname -s)),triton==3.6.0)
TORCH_REQUIREMENT := $(or $(TORCH_$(TORCH)),$(error TORCH=$(TORCH): must be cpu or cuda))

.PHONY: setup demo test test-fast check bench protos down
.DEFAULT_GOAL := setup

setup: $(STAMP)

# In this order: torch alone and first, so that nothing else chooses its build.
$(STAMP): pyproject.toml constraints.txt
	@say() { printf '[setup %3d s] %s\n' "$$SECONDS" "$$*"; }
	if [ -e $(VENV)/.torch ] && [ "$$(cat $(VENV)/.torch)" != $(TORCH) ]; then
	  say "removing $(VENV), made with TORCH=$$(cat $(VENV)/.torch)"
	  rm -rf $(VENV)
	fi
	if [ ! -x $(BIN)/pip ]; then
	  python=
	  for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3; do
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	        2>/dev/null; then python=$$candidate; break; fi
	  done
	  if [ -z "$$python" ]; then
	    echo "setup: no Python 3.11, 3.12 or 3.13 with venv found; name one with PYTHON=..." >&2
	    exit 2
	  fi
	  say "$$($$python --version) ($$python) -> $(VENV)"
	  $$python -m venv $(VENV)
	fi
	pip() { $(BIN)/python -m pip --disable-pip-version-check install -qq --no-input -c constraints.txt $(PIP_ARGS) "$$@"; }
	say "installing $(TORCH_PIN) ($(TORCH)): the largest part"
	pip '$(TORCH_REQUIREMENT)' hatchling $(TRITON_$(TORCH))
	say "torch $$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))') is in;" \
	  "installing Ray, DeepSpeed, transformers and the tools"
	pip --no-build-isolation -e '.[server,dev]'
	echo $(TORCH) > $(VENV)/.torch
	touch $@
	say "done: $(BIN)/fluyt --help"

# Starts a local Ray, asks the default model about the pictures of deploy/demo, leaves nothing running.
demo: $(STAMP)
	@exec $(BIN)/python -m cluster.demo

# Ray takes the whole machine; everything else is spread over two processes, file by file.
APART := -n 2 --dist loadfile

test: $(STAMP)
	@$(BIN)/python -m pytest -m "not ray" $(APART)
	$(BIN)/python -m pytest -m ray

test-fast: $(STAMP)
	@exec $(BIN)/python -m pytest -m "not ray and not slow" $(APART)

# What CI runs. The tests come last, so that their closing line is the last line.
check: $(STAMP)
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy model cluster
	$(BIN)/python -m pytest -m "not ray" $(APART)
	$(BIN)/python -m pytest -m ray

bench: $(STAMP)
	@$(BIN)/fluyt bench engine --peer transformers --json
	$(BIN)/fluyt bench cluster --streams 1 --json
	$(BIN)/fluyt bench cluster --streams 40 --json

# From the root, so that the stubs import each other as `protos.fluyt.v1`.
protos: $(STAMP)
	@$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. protos/fluyt/v1/*.proto

down: $(STAMP)
	@exec $(BIN)/fluyt down

.ONESHELL:
