# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
QUICKSTART_ARGS ?=
BIN := $(VENV)/bin
MARK := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test lint types docs docs-check install clean

quickstart: $(MARK)
	@$(BIN)/d2unlearn quickstart $(QUICKSTART_ARGS)

test: $(MARK)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(MARK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(MARK)
	$(BIN)/mypy

docs: $(MARK)
	$(BIN)/python docs/build/generated_docs.py --write

docs-check: $(MARK)
	$(BIN)/python docs/build/generated_docs.py

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
