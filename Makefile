# Everything runs in .venv, made from constraints.txt by the first target that needs it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test check lint format mutants bench clean

demo: $(VENV)/ready  ## DPO on the embedded controlled world, offline: three minutes on two cores
	$(BIN)/python -m prefopt.train experiment=demo

test: $(VENV)/ready  ## the tests, eleven minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/ready  ## the long tests too
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "long or not long"

lint: $(VENV)/ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mutants: $(VENV)/ready  ## every committed mutation of the mathematics must be caught by a test
	$(BIN)/python tests/mutants.py

bench: $(VENV)/ready  ## committed benchmarks; each prints ratios measured side by side
	for script in memory sampling curves speed figure; do $(BIN)/python benchmarks/$$script.py || exit 1; done

# torch first and alone: its constraint names a build, and a looser request would fetch another.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,quant,optuna,joblib]"
	touch $@

clean:
	rm -rf $(VENV) build dist
