# make quickstart   install what detkit needs, train on generated images, show what was learnt
# make test         install what its developers need too, then run the default tests
PYTHON ?= python3
BIN := .venv/bin
#: Tests run in so many processes, each with one thread
JOBS ?= 2

.PHONY: quickstart test test-slow lint types format clean

quickstart: .venv/quickstart
	$(BIN)/python tools/train.py experiment=quickstart

test: .venv/ready
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# $(call install,EXTRAS): detkit itself stays in its folder
define install
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("detkit needs Python 3.11 or newer; this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.$(1)'
endef

.venv/quickstart: pyproject.toml
	$(call install)
	touch $@

.venv/ready: pyproject.toml
	$(call install,[dev])
	touch .venv/quickstart $@

clean:
	rm -rf .venv
