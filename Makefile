# make demo and make test do all the set-up they need. PYTHON=python3.12 picks another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLAIN := $(VENV)/.plain
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test conformance lint format types pages clean

help:
	@echo "make demo         install into $(VENV) and turn an example page into vision tokens"
	@echo "make test         run the tests"
	@echo "make conformance  run transformers' own common model tests on our models"
	@echo "make lint types   check style and types"
	@echo "make format       format the code"
	@echo "make pages        make the example pages again"
	@echo "make clean        remove what the other targets made"

# What a user has, and what developers need beside it.
$(PLAIN): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(INSTALLED): $(PLAIN)
	$(PIP) -e ".[dev]"
	touch $@

demo: $(PLAIN)
	$(BIN)/deepencoder encode examples/dense-text.png --mode gundam --output demo/features.safetensors --picture demo/picture.png

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

conformance: $(INSTALLED)
	$(BIN)/python tests/conformance/download.py .cache/conformance
	$(BIN)/python -m pytest -q tests/conformance

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pages: $(INSTALLED)
	$(BIN)/python examples/make_pages.py

clean:
	rm -rf $(VENV) .cache build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache
