# Everything is built into .venv by stamps: a target runs again only when what it depends on has changed.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PEERS := .venv-peers
PEERS_PIP := $(PEERS)/bin/python -m pip --disable-pip-version-check
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
CSRC := CMakeLists.txt $(wildcard csrc/*/*.* csrc/include/clusterucb/*.hpp)
CLANG_FORMATTED := $(wildcard csrc/*/*.cpp csrc/*/*.hpp csrc/*/*.cu csrc/*/*.cuh csrc/include/clusterucb/*.hpp tests/simt/* tests/whole/adversary/*.cpp)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-floor docs lint format bench-strategies bench-replay bench-training bench-rounds bench-gradients gpu-check torture fuzz wheel clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.installed  ## create .venv with CPU torch, the compiled extension and the plugins

demo: setup  ## select data for a real model from a real pool (under 5 minutes after downloads)
	$(BIN)/clusterucb demo $(ARGS)

test: setup  ## run every test
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-floor: setup build/floor  ## test trainers of the oldest transformers that is supported
	PYTHONPATH=build/floor $(BIN)/python -m pytest tests/training/test_trainer.py -n auto -p no:cacheprovider $(ARGS)

build/floor: pyproject.toml $(VENV)/.installed
	$(PIP) install -q --no-deps --upgrade --target $@ $(PIP_ARGS) transformers==4.56.* tokenizers==0.22.* huggingface-hub==0.36.* datasets==4.1.*
	touch $@

docs: setup $(VENV)/.docs  ## build the documentation into build/docs, where every warning is an error
	$(BIN)/python -m sphinx -n -W --keep-going -q docs build/docs $(ARGS)

lint: setup $(VENV)/.lint  ## check style (ruff, clang-format), types (mypy --strict) and layers (tests/structure.py)
	$(BIN)/python tests/structure.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CLANG_FORMATTED)

format: setup $(VENV)/.lint  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CLANG_FORMATTED)

torture: setup  ## kill, cut the power of, damage, limit and crowd every command, give it hostile inputs, and fuzz what it reads (hours)
	$(BIN)/python tests/whole/adversary/hostile.py
	$(BIN)/python tests/whole/adversary/limits.py
	$(BIN)/python tests/whole/adversary/crowds.py
	$(BIN)/python tests/whole/adversary/kills.py
	$(BIN)/python tests/whole/adversary/power.py
	$(BIN)/python tests/whole/adversary/deaths.py
	$(BIN)/python tests/whole/adversary/damage.py
	$(BIN)/python tests/whole/adversary/edits.py
	$(MAKE) --no-print-directory fuzz

fuzz: setup $(VENV)/.fuzz  ## fuzz what is read from others, guided by coverage, ten minutes for each of six kinds of input
	$(BIN)/python tests/whole/adversary/fuzz.py $(ARGS)

bench-strategies: setup  ## score and sketch two real pools whole, and compare gradient clusters (the first time, some two hours)
	$(BIN)/python benchmarks/strategies.py $(ARGS)

bench-replay: setup  ## compare strategies on the recorded scores of three real pools (two hours)
	$(BIN)/python benchmarks/replay.py $(ARGS)

bench-training: setup  ## train on selections and judge them on unseen samples (hours; resumes)
	$(BIN)/python benchmarks/bench_training.py $(ARGS)

bench-rounds: setup  ## select anew while training, by several schedules, and judge on unseen samples (hours; resumes)
	$(BIN)/python benchmarks/bench_rounds.py $(ARGS)

bench-gradients: $(PEERS)/.installed  ## time gradients against training and against bergson and dattri-llm
	$(PEERS)/bin/python benchmarks/bench_gradients.py $(ARGS)

gpu-check:  ## check and time the CUDA kernels on this machine's GPU, with the torch of PYTHON
	$(PYTHON) benchmarks/gpu_check.py $(ARGS)

wheel: $(VENV)/.wheel  ## build an sdist and a wheel of it in dist/, for this Python and the oldest Linux this compiler allows
	rm -rf build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build --no-isolation --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist

clean:  ## remove the environment and everything built
	rm -rf $(VENV) $(PEERS) build dist

$(VENV)/.pip $(PEERS)/.pip: %/.pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clusterucb needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $*
	$*/bin/python -m pip --disable-pip-version-check install -q -U $(PIP_ARGS) 'pip>=25.1'
	touch $@

# torch first and pinned: an unconstrained newest torch on Linux brings some 3 GB of CUDA packages.
$(VENV)/.torch $(PEERS)/.torch: %/.torch: constraints/cpu.txt | %/.pip
	$*/bin/python -m pip --disable-pip-version-check install -q $(PIP_ARGS) -r constraints/cpu.txt
	touch $@

$(VENV)/.installed: pyproject.toml $(CSRC) $(PLUGINS:=/pyproject.toml) $(VENV)/.torch
	$(PIP) install -q $(PIP_ARGS) -c constraints/cpu.txt --group build --group test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install -q $(PIP_ARGS) -c constraints/cpu.txt --no-build-isolation -e '.[demo]' $(PLUGINS:%=-e %)
	touch $@

# Built apart from .venv, whose cmake and ninja a build folder remembers.
$(PEERS)/.installed: pyproject.toml constraints/peers.txt $(CSRC) $(PEERS)/.torch
	$(PEERS_PIP) install -q $(PIP_ARGS) -c constraints/cpu.txt --group build
	PATH="$(CURDIR)/$(PEERS)/bin:$$PATH" $(PEERS_PIP) install -q $(PIP_ARGS) -c constraints/cpu.txt --no-build-isolation -C build-dir=build/peers -e '.[demo]' datasets
	$(PEERS_PIP) install -q $(PIP_ARGS) --no-deps -r constraints/peers.txt
	touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.installed
	$(PIP) install -q $(PIP_ARGS) -c constraints/cpu.txt --group docs
	touch $@

$(VENV)/.lint: pyproject.toml $(VENV)/.torch
	$(PIP) install -q $(PIP_ARGS) --group lint
	touch $@

# A recipe of its own, so that the rest of `make torture` runs where atheris has no wheel.
$(VENV)/.fuzz: pyproject.toml $(VENV)/.pip
	$(PIP) install -q $(PIP_ARGS) --only-binary atheris --group fuzz || \
	  { echo "atheris cannot be installed here, so nothing is fuzzed: it needs CPython 3.11 to 3.13 on Linux" >&2; exit 1; }
	touch $@

$(VENV)/.wheel: pyproject.toml $(VENV)/.pip
	$(PIP) install -q $(PIP_ARGS) --group build --group wheel
	touch $@
