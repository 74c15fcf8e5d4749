# Thin: every line can be run by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Building CUDA kernels takes minutes: done by hand with `make ops`, and where a GPU will use them.
WITHOUT_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo RECON_OPS_CUDA=0)

.PHONY: quickstart test test-all soak lint ops clean

quickstart: $(VENV)/.ops
	$(BIN)/python jobs/pretrain.py

# The tests that start a Ray in one process, the others beside it.
test: $(VENV)/.installed-dev $(VENV)/.ops
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# One after the other: the long tests wait for what happens on a busy Ray.
test-all: $(VENV)/.installed-dev $(VENV)/.ops
	$(BIN)/python -m pytest -q -m ''

# Half an hour of killed workers, lost nodes and full disks; `python tests/soak/soak.py --help`.
soak: $(VENV)/.installed-dev $(VENV)/.ops
	$(BIN)/python tests/soak/soak.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The compiled point operations, with CUDA kernels where there is a toolkit.
ops: $(VENV)/.installed
	$(BIN)/python -m pip install -q 'setuptools>=77' wheel ninja
	$(BIN)/python -m pip install --no-build-isolation ./ops
	touch $(VENV)/.ops

clean:
	rm -rf $(VENV) build *.egg-info ops/build ops/*.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]'
	touch $(VENV)/.installed $@

# Without a compiler everything works, only slower: one warning, and on.
$(VENV)/.ops: $(wildcard ops/setup.py ops/csrc/* ops/recon_ops/*.py) | $(VENV)/.installed
	$(BIN)/python -m pip install -q 'setuptools>=77' wheel ninja
	$(WITHOUT_GPU) $(BIN)/python -m pip install --no-build-isolation ./ops || echo "warning: the compiled point operations were not built (see above); plain torch takes their place"
	touch $@
