# make run    set everything up in .venv, then run the main job (examples/digits.py)
# make test   set everything up, then lint, types and tests
# Everything else: test-slow, lint, format, bench, clean.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: run test test-slow lint format bench clean

run: $(INSTALLED)
	$(BIN)/ppl run examples/digits.py

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

test-slow: $(INSTALLED)
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is older than pyproject.toml or constraints.txt when either has changed: install again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
