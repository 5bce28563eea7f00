# Everything that a developer or CI runs. Each target brings the environment up to date first, which takes no
# time when it is. `make PYTHON=... VENV=... TARGET` does it with another interpreter, in another environment.
VENV ?= .venv
py = $(VENV)/bin/python
asv_conf = asv.conf.json
asv = $(py) -m asv --config $(asv_conf)
# asv makes an environment of its own to measure a commit in, from a Python that it finds by name: this one. It installs
# what builds nbloop (build-system.requires) before scripts/install-packages pins it. On 3.13t pip would build numpy and
# llvmlite from source for that: so nothing that those need, and numpy as a wheel.
asv_env = PATH="$(abspath $(VENV))/bin:$$PATH" PIP_NO_DEPS=1 PIP_ONLY_BINARY=numpy $(asv)
asv_python = virtualenv:$$($(py) -c 'import sys; print("%d.%d" % sys.version_info[:2] + sys.abiflags)')
newer = $(or $(VERSION),3.14)
core = $(patsubst %,tests/contract/test_%.py,submit lifecycle timers order errors references readiness channels graphs) \
    tests/kernels/test_interpreter.py tests/js tests/aio/test_transports.py tests/aio/test_datagrams.py
asv_machine = $(HOME)/.asv-machine.json

.PHONY: help setup demo doctor wheel test test-slow test-interrupts test-gil test-newer test-debug test-aarch64 test-wheel test-nojit test-checked test-windows test-asyncio test-ecosystem test-suites verify mutate soak lint format types docs doctest bench-smoke instructions bench \
    bench-continuous bench-html peers compare figures clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make the virtual environment, and a free-threaded Python where there is none
	@scripts/setup

demo: setup ## show the loop at work
	$(py) -m nbloop demo $(ARGS)

doctor: setup ## say what of this machine and Python the loop can use
	$(py) -m nbloop doctor $(ARGS)

wheel: setup ## build a wheel for this Python that carries compiled kernels: dist/
	@VENV=$(VENV) scripts/wheel

test: setup ## run the tests; ARGS="-k name" goes to pytest
	$(py) -m pytest -m "not slow" --ignore tests/interrupts $(ARGS)

test-slow: setup ## run the tests that test leaves out, because each takes seconds of processor time
	$(py) -m pytest -m slow --ignore tests/interrupts $(ARGS)

test-interrupts: setup ## make a signal arrive before every instruction of many calls: minutes; EVERY=8 for an eighth
	NBLOOP_EVERY=$(or $(EVERY),1) $(py) -m pytest tests/interrupts $(ARGS)

test-gil: ## run the tests on an ordinary CPython, or say why not
	@if python=$$(scripts/find-python --gil); then \
	    $(MAKE) --no-print-directory test test-slow VENV=.venv-gil PYTHON="$$python"; \
	else \
	    echo "SKIPPED: the tests on a Python with the GIL, see above"; \
	fi

test-newer: ## run the tests on an ordinary CPython of a newer Debian, VERSION=3.14 or 3.15, or say why not
	@if python=$$(scripts/debian-python $(newer)); then \
	    $(MAKE) --no-print-directory $(or $(TARGET),test) VENV=.venv-$(newer) PYTHON="$$python"; \
	else \
	    echo "SKIPPED: the tests on Python $(newer), see above"; \
	fi

# numba's own objects make a debug build complain, so these are tests that do not compile.
test-debug: ## run tests of the core on an ordinary CPython built --with-pydebug, VERSION=3.14, or say why not
	@if python=$$(scripts/debian-python --debug $(newer)); then \
	    $(MAKE) --no-print-directory test VENV=.venv-$(newer)-debug PYTHON="$$python" ARGS="$(or $(ARGS),$(core))"; \
	else \
	    echo "SKIPPED: the tests on a debug build of Python $(newer), see above"; \
	fi

test-aarch64: ## run tests of the core on AArch64, with kernels compiled for it, by qemu: minutes; or say why not
	@if python=$$(scripts/debian-python 3.14) && scripts/debian-python --arm64 3.14 >/dev/null; then \
	    PYTHON="$$python" VENV=.venv-3.14 scripts/setup && VENV=.venv-3.14 scripts/test-aarch64 $(ARGS); \
	else \
	    echo "SKIPPED: the tests on AArch64, see above"; \
	fi

test-wheel: setup ## build the wheel, and run tests on it where there is nothing that compiles; ARGS are pytest's
	@VENV=$(VENV) scripts/test-wheel $(ARGS)

test-nojit: setup ## run the kernels' tests on the kernels as plain Python
	NUMBA_DISABLE_JIT=1 $(py) -m pytest tests/kernels $(ARGS)

test-checked: setup ## run random programs and some tests with every address checked that a kernel touches
	NUMBA_DISABLE_JIT=1 $(py) -m pytest -p tests.support.checked tests/proofs/test_fuzz.py tests/contract/test_readiness.py tests/js/test_aplus.py \
		'tests/aio/test_transports.py::test_random_programs_mean_the_same[0-unix]' \
		tests/aio/test_transports.py::test_a_buffered_protocol_receives_into_its_buffer \
		tests/aio/test_transports.py::test_what_the_system_does_not_take_at_the_end_of_a_turn_follows \
		tests/aio/test_loop.py::test_a_handle_of_any_callback tests/aio/test_loop.py::test_what_others_write_into_a_handle \
		tests/aio/test_loop.py::test_a_timer_of_any_number tests/aio/test_loop.py::test_a_timer_of_any_call \
		tests/aio/test_loop.py::test_what_others_write_into_a_timer tests/aio/test_loop.py::test_a_cancelled_timer_is_asyncios $(ARGS)

test-windows: setup ## run what tells of a platform on a Windows Python under Wine, or say why not
	@if scripts/wine-python --check; then \
	    scripts/wine-python -m pytest tests/pollers tests/contract/test_parking.py tests/contract/test_timers.py $(ARGS); \
	else \
	    echo "SKIPPED: the tests on Windows under Wine, see above"; \
	fi

test-asyncio: setup ## run CPython's own asyncio tests on nbloop's asyncio loop
	$(py) -m pytest conformance $(ARGS)

test-ecosystem: setup ## run every block of docs/recipes.md, and write docs/compatibility.md: libraries of others, against real servers
	NBLOOP_ECOSYSTEM="$$(VENV=$(VENV) scripts/ecosystem)" $(py) -m pytest ecosystem $(ARGS)

test-suites: ## run the tests that aiohttp, anyio, tornado, uvicorn, uvloop ship, on nbloop and asyncio, VERSION=3.14, or say why not
	@if python=$$(scripts/debian-python $(newer)); then \
	    PYTHON="$$python" VENV=.venv-$(newer) scripts/setup && \
	    environment=$$(VENV=.venv-$(newer) scripts/ecosystem --suites) && \
	    NBLOOP_ECOSYSTEM="$$environment" .venv-$(newer)/bin/python -m pytest suites -o faulthandler_timeout=0 $(ARGS); \
	else \
	    echo "SKIPPED: other libraries' own tests, see above"; \
	fi

verify: setup ## models of the protocols, races in the kernels, histories; see docs/verification.md for the tools that it needs
	$(py) -m pytest models races tests/proofs/test_histories.py $(ARGS)

mutate: setup ## plant more than 350 bugs into copies of nbloop, and show that the tests notice; ARGS=heap for some
	$(py) scripts/mutate.py $(ARGS)

soak: setup ## everything at once for SECONDS=60, and a look at what is left behind
	$(py) tests/soak.py $(or $(SECONDS),60) $(SEED)

lint: setup ## check style and formatting
	$(py) -m ruff check
	$(py) -m ruff format --check

format: setup ## format the code, and fix what of style can be fixed
	$(py) -m ruff check --fix
	$(py) -m ruff format

types: setup ## check the types
	$(py) -m mypy

docs: setup ## build the documentation's site: dist/docs/index.html
	@VENV=$(VENV) scripts/docs

doctest: setup ## run the examples in docstrings, README.md and docs/
	$(py) scripts/run_examples.py $(wildcard README.md docs/*.md docs/*/*.md)

bench-smoke: setup $(asv_machine) ## run each benchmark once, to see that it still runs; for figures use bench
	@VENV=$(VENV) scripts/bench-smoke $(ARGS)

instructions: setup ## count the instructions of each operation; fails if there are more than in asv_bench/instructions.json
	$(py) -m asv_bench.instructions $(ARGS)

bench: setup $(asv_machine) ## measure commit HEAD, keep the results, show them; BENCH=regex for some of it
	$(asv_env) run --show-stderr --bench '$(or $(BENCH),.)' --environment $(asv_python) $(ARGS) '$(or $(HEAD),HEAD)^!'

# Only what asv times itself has samples, so only there can it tell a regression from noise; asyncio has none of ours.
timed = ^(?!.*asyncio).*[.]time_
bench-continuous: setup $(asv_machine) ## compare commits BASE and HEAD; fails if something got slower by FACTOR
	$(asv_env) continuous --show-stderr --interleave-rounds --factor $(or $(FACTOR),1.25) \
	    --bench '$(or $(BENCH),$(timed))' --environment $(asv_python) $(ARGS) $(or $(BASE),HEAD~1) $(or $(HEAD),HEAD)

bench-html: setup ## make web pages of the results that were kept: .asv/html/index.html
	$(asv) publish
	@echo "to look at them: $(py) -m asv --config $(asv_conf) preview"

peers: setup ## install what compare can set nbloop beside, and what draws the figures
	@VENV=$(VENV) scripts/peers

compare: setup ## compare with asyncio, and with what of uvloop, trio, Node.js is installed (see peers)
	$(py) -m asv_bench.compare $(ARGS)

figures: peers ## measure all, write the tables and pictures of README.md and docs/
	$(py) -m asv_bench.compare --readme README.md --md docs/figures.md $(ARGS)
	$(py) -m asv_bench.scale --images docs/images --md docs/scale.md
	$(py) -m asv_bench.tuning --images docs/images --md docs/performance-tuning.md

$(asv_machine): | setup
	$(asv) machine --yes >/dev/null

clean: ## remove what was made here; a built Python stays in the user's cache
	rm -rf .venv .venv-* .venv*.lock build dist *.egg-info .asv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
