# Everything that a developer or CI runs. Each target brings the environment up to date first, which takes no
# time when it is. `make PYTHON=... VENV=... TARGET` does it with another interpreter, in another environment.
VENV ?= .venv
py = $(VENV)/bin/python
asv_conf = $(firstword $(wildcard asv.conf.json asv_bench/asv.conf.json))

.PHONY: help setup demo doctor test test-gil test-nojit verify lint format types doctest bench-smoke compare figures clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make the virtual environment, and a free-threaded Python where there is none
	@scripts/setup

demo: setup ## show the loop at work
	$(py) -m nbloop demo $(ARGS)

doctor: setup ## say what of this machine and Python the loop can use
	$(py) -m nbloop doctor $(ARGS)

test: setup ## run the tests; ARGS="-k name" goes to pytest
	$(py) -m pytest $(ARGS)

test-gil: ## run the tests on an ordinary CPython, or say why not
	@if python=$$(scripts/find-python --gil); then \
	    $(MAKE) --no-print-directory test VENV=.venv-gil PYTHON="$$python"; \
	else \
	    echo "SKIPPED: the tests on a Python with the GIL, see above"; \
	fi

test-nojit: setup ## run the kernels' tests on the kernels as plain Python
	NUMBA_DISABLE_JIT=1 $(py) -m pytest tests/kernels $(ARGS)

verify: setup ## models of the protocols, races in the kernels; see docs/verification.md for the tools that it needs
	$(py) -m pytest models races $(ARGS)

lint: setup ## check style and formatting
	$(py) -m ruff check
	$(py) -m ruff format --check

format: setup ## format the code, and fix what of style can be fixed
	$(py) -m ruff check --fix
	$(py) -m ruff format

types: setup ## check the types
	$(py) -m mypy

doctest: setup ## run the examples in docstrings, README.md and docs/
	$(py) scripts/run_examples.py $(wildcard README.md docs/*.md docs/*/*.md)

bench-smoke: setup ## run each benchmark once, to see that it still runs; for figures use asv itself
	@test -f ~/.asv-machine.json || $(py) -m asv --config $(asv_conf) machine --yes >/dev/null
	timeout 600 $(py) -m asv --config $(asv_conf) run --quick --dry-run --show-stderr \
	    --environment existing:$(abspath $(py)) $(ARGS)

compare: setup ## compare with asyncio and what else is installed
	$(py) -m asv_bench.compare $(ARGS)

figures: setup ## measure, and write the tables of README.md and docs/figures.md
	$(py) -m asv_bench.compare --readme README.md --md docs/figures.md $(ARGS)

clean: ## remove what was made here; a built Python stays in the user's cache
	rm -rf .venv .venv-gil .venv*.lock build dist *.egg-info .asv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
