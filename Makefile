# From a fresh clone, with python3, pip and a C++ compiler: `make demo`, `make test`.
# Another Python: `make test PYTHON=python3.12`.

PYTHON ?= python3
# A pyenv shim answers for activated versions only: look among the installed ones too.
PYTHON_BIN := $(shell $(PYTHON) -c 'import sys; print(sys.executable)' 2>/dev/null || \
  ls -v $${PYENV_ROOT:-$$HOME/.pyenv}/versions/*/bin/$(PYTHON) 2>/dev/null | tail -n 1)
ifeq ($(PYTHON_BIN),)
$(error $(PYTHON) was not found: give a Python 3.11 or newer with PYTHON=/path/to/python)
endif
VERSION := $(shell $(PYTHON_BIN) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
WORKDIR ?= runs/demo

.PHONY: help demo test lint pytest test-versions test-slow prove-resume fuzz benchmark benchmark-kernels lease format tables clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/experiments ## train dense, RigL and SRigL on digits, export and time the result
	$(BIN)/python -m experiments.sweep --config=configs/sweeps/digits.py --workdir=$(WORKDIR)
	$(BIN)/python -m experiments.export --workdir=$(WORKDIR)/srigl/seed0 \
	  --out=$(WORKDIR)/srigl.safetensors --overwrite
	$(BIN)/python -m experiments.infer --model=$(WORKDIR)/srigl.safetensors \
	  --workdir=$(WORKDIR)/srigl/seed0 --overwrite

test: lint pytest ## linter, type checker and the whole default test suite

lint: $(VENV)/test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/test ## the default test suite
	$(BIN)/python -m pytest -n auto

test-versions: ## the whole default test suite on each Python that is supported
	$(MAKE) test PYTHON=python3.11
	$(MAKE) test PYTHON=python3.12

test-slow: $(VENV)/test ## proofs that take minutes
	$(BIN)/python -m pytest -n 1 -m slow

prove-resume: $(VENV)/test ## kill a CIFAR-10 run half-way, resume it, compare every bit
	$(BIN)/python -m tests.prove_resume --config=configs/cifar10_quick.py $(ARGS)

fuzz: $(VENV)/test ## 10,000 cases of the native kernels under AddressSanitizer and UBSan
	cmake -S . -B build/fuzz -DPython_EXECUTABLE=$(abspath $(BIN))/python
	cmake --build build/fuzz --target srigl_fuzz
	build/fuzz/srigl_fuzz 10000

benchmark: $(VENV)/experiments ## what sparse training costs over dense training
	$(BIN)/python -m experiments.benchmark_training $(ARGS)

benchmark-kernels: $(VENV)/experiments ## what condensed layers gain over dense ones
	$(BIN)/python -m kernels.benchmark $(ARGS)

lease: $(VENV)/experiments ## pack what a lent GPU machine lacks into .lease/
	$(BIN)/python -m experiments.lease pack

tables: $(VENV)/experiments ## put the results' tables into README.md and docs/
	$(BIN)/python -m experiments.tables

format: $(VENV)/test ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

NATIVE := CMakeLists.txt $(wildcard kernels/cpu/*.cc kernels/cpu/*.h)

$(VENV)/experiments: pyproject.toml requirements.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON_BIN) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/test: $(VENV)/experiments
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[experiments,test]'
	touch $@

clean: ## remove the environments and caches (never runs/)
	rm -rf .venv-* build .pytest_cache .mypy_cache .ruff_cache .hypothesis
