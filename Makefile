# Short on purpose: every line can be run by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# CUDA kernels take minutes to build: only where there is a GPU, and by hand with `make ops`.
WITHOUT_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo RECON_OPS_CUDA=0)

.PHONY: quickstart test test-all test-lowest soak lint ops clean

quickstart: $(VENV)/.ops
	$(BIN)/python jobs/pretrain.py

# Two processes: one runs all tests that start a Ray cluster.
test: $(VENV)/.installed-dev $(VENV)/.ops
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# One process: the long tests need a Ray cluster that nothing else keeps busy.
test-all: $(VENV)/.installed-dev $(VENV)/.ops
	$(BIN)/python -m pytest -q -m ''

# The Ray tests with the lowest versions that pyproject.toml states; the environment takes 7 GB.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -q -m 'ray and not long'

# Half an hour of killed workers, lost nodes and full disks, see `python tests/soak/soak.py --help`.
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
	rm -rf $(VENV) $(LOWEST) build *.egg-info ops/build ops/*.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]'
	touch $(VENV)/.installed $@

$(LOWEST)/.installed: pyproject.toml
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	sed -n -E '/^dependencies/,/^]/ s/^ *"([a-z_-]+)(\[[a-z,]+\])?>=([0-9.]+)".*/\1==\3/p' pyproject.toml > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install -e '.[dev]' -c $(LOWEST)/lowest.txt
	touch $@

# Without a compiler there is a warning, and everything works, only slower.
$(VENV)/.ops: $(wildcard ops/setup.py ops/csrc/* ops/recon_ops/*.py) | $(VENV)/.installed
	$(BIN)/python -m pip install -q 'setuptools>=77' wheel ninja
	$(WITHOUT_GPU) $(BIN)/python -m pip install --no-build-isolation ./ops || echo "warning: the compiled point operations were not built (see above); plain torch takes their place"
	touch $@
