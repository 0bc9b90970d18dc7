# Every target sets up what it needs. PYTHON chooses the interpreter, WORKDIR the run directory.
PYTHON ?= python3
WORKDIR ?= runs/pretrain
VENV := .venv
BIN := $(VENV)/bin

.PHONY: pretrain systems compare curves ceiling real test test-all lint format clean

pretrain: $(VENV)/installed
	$(BIN)/python -m mmrl.main --config=configs/pretrain.py --workdir=$(WORKDIR)

systems: $(VENV)/installed
	$(BIN)/python -m benchmarks.systems --workdir=runs/systems --out=docs/results

compare: $(VENV)/installed
	$(BIN)/python -m benchmarks.compare --workdir=runs/compare --out=docs/results

curves: $(VENV)/installed
	$(BIN)/python -m benchmarks.curves --workdir=runs/compare --out=docs/results

ceiling: $(VENV)/installed
	$(BIN)/python -m benchmarks.ceiling --workdir=runs/ceiling --out=docs/results

# Reads the real corpora below MMRL_REAL_DATA.
real: $(VENV)/installed
	$(BIN)/python -m benchmarks.real_pairs --workdir=runs/real --out=docs/results

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "exhaustive or not exhaustive"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs
