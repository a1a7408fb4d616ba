# Two commands: `make demo` runs the main job, `make test` the whole suite. Both do all the set-up in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test faults test-js lint clean

demo: $(VENV)/.installed
	$(BIN)/clip-tui demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# Every test that injects a fault, with 200 trainers killed and a kill after each change of a save; prints their table.
faults: $(VENV)/.installed
	CLIP_TEST_KILLS=200 $(BIN)/python -m pytest -q -m fault

# transformers.js reads bundles; needs node and npm, so it is not part of `make test`. Install scripts are not run.
test-js: $(VENV)/.installed
	npm install --prefix tests/javascript --no-package-lock --no-audit --no-fund --ignore-scripts
	$(BIN)/python -m pytest -q -rP tests/javascript/check_transformers_js.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clip-tui needs Python 3.11 or later: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
