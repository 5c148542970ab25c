# Every target can be repeated; the virtual environment is rebuilt only when what it installs has changed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := build/demo
SECONDS ?= 1800
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo serve test lint types coverage soak bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,otel,train,test,dev]'
	touch $@

demo: $(STAMP)  ## train, fold, prove, serve and predict, once through
	$(BIN)/python -m models.demo --out $(DEMO)

serve: $(STAMP)  ## serve what the demo folded, until Ctrl-C
	@test -d $(DEMO)/repository || $(MAKE) demo
	$(BIN)/bnfold serve $(DEMO)/repository

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

types: $(STAMP)
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest

coverage: $(STAMP)  ## the same tests, slower, and the lines that none of them runs
	$(BIN)/python -m pytest --cov=fold --cov=service --cov=models --cov-report=term-missing:skip-covered

soak: $(STAMP)  ## a loaded service with reloads, for SECONDS
	$(BIN)/python -m benchmarks.soak --seconds $(SECONDS)

bench: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m benchmarks.folding
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.certifying
	$(BIN)/python -m benchmarks.serving --model digits
	$(BIN)/python -m benchmarks.serving --model resnet18

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis .coverage
