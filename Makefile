# `make demo` and `make test` do all the set-up they need. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLAIN := $(VENV)/.plain
INSTALLED := $(VENV)/.installed
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL) -c constraints.txt

# A second environment with the lowest supported versions. Its torch is the one in .venv, since each version of torch is
# a large download; TORCH=2.6.0 installs that version instead. The oldest numpy has wheels for Python 3.10 and 3.11.
TORCH :=
LOWEST := .cache/lowest
JAVASCRIPT := .cache/javascript
SITE_PACKAGES := import sysconfig; print(sysconfig.get_path("platlib"))
# The smoke test: imports, registration, configurations, models, image processor, sources and the command line.
SMOKE := tests/deepencoder/test_import.py tests/deepencoder/test_cli.py tests/configuration tests/modeling \
	tests/processing tests/extraction/test_listing.py tests/extraction/test_arrow.py tests/test_placement.py
# accelerate before 1.14 leaves the last of several equal devices empty. Pillow before 13 refuses to shrink an image to
# less than half a pixel, so a page that is a thousand times as high as wide raises an error.
NOT_WITH_LOWEST := not filled_evenly and not counts_equal

# What `make train` does: the preset, the folder of the run, and the folder of fonts and texts.
PRESET := cpu
RUN := .cache/training/$(PRESET)
MATERIALS := .cache/training/materials
TRAIN_cpu := $(BIN)/python -m training.train $(MATERIALS) $(RUN) --preset cpu --cpu --workers 0 --minutes 180 --cooldown 90
TRAIN_gpu := $(BIN)/accelerate launch -m training.train $(MATERIALS) $(RUN) --preset gpu --workers 14

# What `make fuzz` runs. No case starts after so many seconds.
SEED := 0
CASES := 10000
SECONDS := 900

.PHONY: help demo test train conformance fuzz javascript llama.cpp lowest lint format types pages clean

help:
	@echo "make demo         install into $(VENV) and turn an example page into vision tokens, and read them"
	@echo "make test         run the tests"
	@echo "make conformance  run transformers' own common model tests on our models"
	@echo "make fuzz         give 10,000 damaged inputs to everything that reads some; SEED=1 chooses others"
	@echo "make javascript   run exported models in Node, with transformers.js from npm"
	@echo "make llama.cpp    build llama.cpp's vision code, for benchmarks/speed.py --peers and tests/clients"
	@echo "make train        train the page reader; PRESET=gpu needs a GPU, RUN=folder says where"
	@echo "make lowest       run a smoke test with the lowest supported versions"
	@echo "make lint types   check style and types"
	@echo "make format       format the code"
	@echo "make pages        draw the example pages again"
	@echo "make clean        remove everything that the other targets made"

# What a user installs, and what developers need in addition.
$(PLAIN): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(INSTALLED): $(PLAIN)
	$(PIP) -e ".[dev]"
	touch $@

demo: $(PLAIN)
	$(BIN)/deepencoder encode examples/dense-text.png --read --output demo/features.safetensors --picture demo/picture.png

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

train: $(INSTALLED)
	test -d $(MATERIALS) || $(BIN)/python -m training.materials $(MATERIALS)
	$(TRAIN_$(PRESET)) --mixed-precision bf16
	$(BIN)/python -m training.export $(RUN) $(RUN)/page-reader

conformance: $(INSTALLED)
	$(BIN)/python tests/conformance/download.py .cache/conformance
	$(BIN)/python -m pytest -q tests/conformance

fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz --seed $(SEED) --cases $(CASES) --seconds $(SECONDS)

# Node 20 or newer. The lock file pins every package; scripts of packages, which would download more, do not run.
$(JAVASCRIPT)/.installed: tests/javascript/package.json tests/javascript/package-lock.json
	mkdir -p $(JAVASCRIPT)
	cp $^ $(JAVASCRIPT)
	npm ci --prefix $(JAVASCRIPT) --ignore-scripts --no-audit --no-fund
	touch $@

javascript: $(INSTALLED) $(JAVASCRIPT)/.installed
	$(BIN)/python -m pytest -q tests/conversion/export/test_transformers_js.py

# Downloads the source archive of llama-cpp-python and builds its vision code with cmake, which takes minutes.
llama.cpp: $(INSTALLED)
	$(BIN)/python benchmarks/peers/build_llama_cpp.py

lowest: $(INSTALLED)
	$(PYTHON) -m venv --clear $(LOWEST)
	$(BIN)/python tests/programs/lowest_versions.py extract > $(LOWEST)/requirements.txt
ifeq ($(TORCH),)
	from=$$($(BIN)/python -c '$(SITE_PACKAGES)') && to=$$($(LOWEST)/bin/python -c '$(SITE_PACKAGES)') && \
		for name in torch torchgen functorch $$(cd "$$from" && ls -d torch-*.dist-info); do \
			ln -s "$$(cd "$$from" && pwd)/$$name" "$$to/$$name"; \
		done
else
	$(LOWEST)/bin/python $(INSTALL) "torch==$(TORCH)"
endif
	$(LOWEST)/bin/python $(INSTALL) -r $(LOWEST)/requirements.txt pytest hypothesis psutil
	$(LOWEST)/bin/python -m pytest -q -p no:cacheprovider -k "$(NOT_WITH_LOWEST)" $(SMOKE)

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
