# Every target sets up what it needs. PYTHON chooses the interpreter, WORKDIR the run directory, and
# INSTALL the command that installs a file of requirements.
PYTHON ?= python3
WORKDIR ?= runs/pretrain
VENV := .venv
BIN := $(VENV)/bin
INSTALL ?= $(BIN)/pip install --quiet -r

.PHONY: pretrain systems proofs ablation curves ceiling local finetune real real-sets pretrained-text
.PHONY: chaos screenshots test test-all lint wheel try-wheel docs notebooks format lock clean

pretrain: $(VENV)/installed
	$(BIN)/python -m mmrl.main --config=configs/pretrain.py --workdir=$(WORKDIR)

systems: $(VENV)/installed
	$(BIN)/python -m benchmarks.systems --workdir=runs/systems --out=docs

proofs: $(VENV)/installed
	$(BIN)/python -m benchmarks.proofs --workdir=runs/proofs --out=docs/results

ablation: $(VENV)/installed
	$(BIN)/python -m benchmarks.ablation --workdir=runs/ablation --out=docs/results

curves: $(VENV)/installed
	$(BIN)/python -m benchmarks.curves --workdir=runs/ablation --out=docs/results

ceiling: $(VENV)/installed
	$(BIN)/python -m benchmarks.ceiling --workdir=runs/ceiling --out=docs/results

local: $(VENV)/installed
	$(BIN)/python -m benchmarks.local_objectives --workdir=runs/local --out=docs/results

# Takes the pretrained runs in FROM.
FROM ?= $(WORKDIR)
finetune: $(VENV)/installed
	$(BIN)/python -m benchmarks.finetune --from $(FROM) --workdir=runs/finetune --out=docs/results

# Reads the real corpora below MMRL_REAL_DATA.
real: $(VENV)/installed
	$(BIN)/python -m benchmarks.real_pairs --workdir=runs/real --out=docs/results

# Judges the runs of `make ablation` and `make real` on the real sets below MMRL_REAL_DATA. MOBILENET
# is the file of its weights; without it, its column is left out.
MOBILENET ?= mobilenet_v2-b0353104.pth
SEEDS := 0 1 2
comma := ,
empty :=
space := $(empty) $(empty)
runs_of = $(subst $(space),$(comma),$(foreach seed,$(SEEDS),$(1)-$(seed)))
real-sets: $(VENV)/installed
	$(BIN)/python -m benchmarks.real_sets --workdir=runs/real_sets --out=docs/results \
		--random $(SEEDS) --mobilenet=$(MOBILENET) \
		--encoder phantom=$(call runs_of,runs/ablation/demo) \
		--encoder roco=$(call runs_of,runs/real/roco-zones)

# Starts text towers from the folder of an encoder that `python -m mmrl.convert` wrote.
ENCODER ?= weights/minilm
pretrained-text: $(VENV)/installed
	$(BIN)/python -m benchmarks.pretrained_text --encoder=$(ENCODER) --workdir=runs/text \
		--out=docs/results

# Kills, starves and damages runs. Filling a disk needs the permission to mount one.
chaos: $(VENV)/installed
	$(BIN)/python -m benchmarks.chaos --workdir=runs/chaos --out=docs/results

# Takes the pictures of the docs in an installed Chromium, of the runs in WORKDIR and of `make ablation`.
screenshots: $(VENV)/installed-dev
	$(BIN)/python -m mmrl.compare ours=$(WORKDIR) paper=runs/ablation/paper-0 --split=val \
		--out=runs/compared
	$(BIN)/python -m benchmarks.screenshots --workdir=$(WORKDIR) --compared=runs/compared

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "exhaustive or not exhaustive"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The wheel in dist/. An older build folder would bring files that are gone.
wheel: $(VENV)/installed
	rm -rf build dist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir=dist .
	rm -rf build mmrl.egg-info

try-wheel: wheel $(VENV)/installed-dev
	.ci/try_wheel dist/*.whl

# Builds the site of the documentation into site/; `python -m http.server -d site` shows it.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Executes the notebooks of the docs into runs/notebooks.
notebooks: $(VENV)/installed-dev
	$(BIN)/python -m nbconvert --to=notebook --execute \
		--ExecutePreprocessor.startup_timeout=300 --output-dir=runs/notebooks \
		docs/notebooks/*.ipynb

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes requirements*.txt. All extras are resolved together, so that the files agree. Versions that
# the files hold stay as long as the ranges allow them; UPGRADE=--upgrade takes the newest, and
# UPGRADE=--upgrade-package=NAME that of one package.
UPGRADE ?=
EXTRAS := beam cuda dev docs serve tpu
lock: $(VENV)/installed-dev
	set -e; here=$$(mktemp -d); trap 'rm -rf "$$here"' EXIT; \
	compile() { $(BIN)/uv pip compile --quiet --universal --python-version=3.11 \
		--no-annotate --custom-compile-command='make lock' "$$@" > /dev/null; }; \
	ls requirements*.txt | grep -v onnx | xargs grep -h '==' | sort -u > "$$here/all.txt"; \
	compile $(UPGRADE) pyproject.toml --all-extras --output-file="$$here/all.txt"; \
	grep -v '^orbax-checkpoint==' "$$here/all.txt" > "$$here/onnx.txt"; \
	compile pyproject.toml -c "$$here/all.txt" --output-file=requirements.txt; \
	for extra in $(EXTRAS); do \
		compile pyproject.toml --extra=$$extra -c "$$here/all.txt" \
			--output-file=requirements-$$extra.txt; \
	done; \
	compile requirements-onnx.in -c "$$here/onnx.txt" --output-file=requirements-onnx.txt

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(INSTALL) requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs build dist site mmrl.egg-info
