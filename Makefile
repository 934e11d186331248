# Each target sets up what it needs, in .venv: no root, no manual step.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test lint bench clean

demo: $(VENV)/.train
	$(BIN)/pyssl-fast train simclr --data mnist5k --out runs/demo-$$(date +%Y%m%d-%H%M%S)

# By files on the cores there are, up to four, each on one thread. What needs several threads says so.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --maxprocesses 4 --dist loadfile

test: $(VENV)/.test
	$(PARALLEL)
	TRITON_INTERPRET=1 $(PARALLEL) -m triton_interpreter

bench: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks --benchmark-only

lint: $(VENV)/.lint $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.train: $(BIN)/pip $(SOURCES)
	$(BIN)/pip install --quiet -e ".[train]"
	touch $@

$(VENV)/.test: $(BIN)/pip $(SOURCES)
	$(BIN)/pip install --quiet -e ".[train,bench,test]"
	touch $@

$(VENV)/.lint: $(BIN)/pip pyproject.toml
	$(BIN)/pip install --quiet --group lint
	touch $@

clean:
	rm -rf build dist *.egg-info pyssl_fast/*.so .pytest_cache .mypy_cache .ruff_cache
