# Two commands do everything: `make demo` and `make test`.
SEEDS ?= 1
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check format docs fuzz package-check

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: install
	$(BIN)/python -m examples.quickstart.compare --seeds $(SEEDS)

# Style, types, imports and the fast tests: the inner loop.
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not deploy"

# Everything: the rest of the tests comes behind.
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or deploy"

fuzz: install
	$(BIN)/python -m pip install --quiet -e ".[fuzz]"
	$(BIN)/python -m fuzz --seconds 60

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/build
	@echo "docs/build/index.html"

package-check: install
	$(BIN)/python .ci/package_check.py
