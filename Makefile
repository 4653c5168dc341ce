# Everything here works on a fresh Debian 12, as root or not; what the system lacks is
# installed, or named where only root could install it.

PYTHON ?= python3
VENV := .venv
PURE := .venv-pure
BIN := $(VENV)/bin
HOT := $(shell find src -name '*_cy.py')
# Most tests wait for something: on two cores, three at a time take a fifth less time than two.
# A file's stay together.
PYTEST ?= -q -rs -n 3 --dist loadfile
# What tests run beside HAProxy.
SERVERS := openssl nghttpd=nghttp2-server tinyproxy=tinyproxy-bin

.PHONY: all check venv venv-pure haproxy demo demo-iprep test test-system test-compiled test-pure test-all \
	coverage lint wheel bench bench-system fuzz soak clean

# `make` and `make all` build, as the C program's do: .venv/bin/spoa-mirror is what comes of it.
all: venv

venv: $(VENV)/.ready
venv-pure: $(PURE)/.ready

# Compiled, and a failure to compile is an error: the uncompiled form must not sneak in.
$(VENV)/.ready: pyproject.toml setup.py $(HOT)
	sh scripts/require_system.sh $(PYTHON)
	@echo "making $(VENV), compiled: some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	SPOAKIT_EXT=require $(BIN)/pip install -q -e '.[all]' --group dev
	touch $@

# Uncompiled, installed as users without a compiler would have it, and without Cython.
$(PURE)/.ready: pyproject.toml setup.py $(shell find src -name '*.py')
	sh scripts/require_system.sh --uncompiled $(PYTHON)
	$(PYTHON) -m venv $(PURE)
	$(PURE)/bin/python -m pip install -q --upgrade 'pip>=25.1'
	rm -rf build
	SPOAKIT_EXT=disable $(PURE)/bin/pip install -q '.[all]' --group test
	touch $@

# The HAProxy versions that are tested with, fetched once into .cache/haproxy.
# Those that cannot be had are named, here and by the tests that need them.
haproxy: venv
	-$(BIN)/python scripts/fetch_haproxy.py

# Uncompiled where there is no compiler, and none can be installed.
DEMO = $(shell sh scripts/require_system.sh --can-compile $(PYTHON) && echo $(VENV) || echo $(PURE))

demo:
	$(MAKE) $(DEMO)/.ready
	$(DEMO)/bin/python scripts/fetch_haproxy.py any
	$(DEMO)/bin/python examples/mirror/demo.py

demo-iprep:
	$(MAKE) $(DEMO)/.ready
	$(DEMO)/bin/python scripts/fetch_haproxy.py any
	$(DEMO)/bin/python examples/ip-reputation/demo.py

# All tests compiled; uncompiled those that meet the hot code (the rule is in tests/conftest.py).
# What has to be there is made side by side, as it mostly waits for others.
test: test-system venv
	$(MAKE) -j -O haproxy lint venv-pure
	$(MAKE) test-compiled test-pure

# First of all, so that whatever is missing is named at once and not after minutes.
test-system:
	sh scripts/require_system.sh $(PYTHON) $(SERVERS)

test-compiled: test-system venv haproxy
	$(BIN)/python -m compileall -q src  # hundreds of tests start programs
	SPOAKIT_EXPECT=compiled $(BIN)/python -m pytest $(PYTEST)

test-pure: test-system venv-pure haproxy
	SPOAKIT_EXPECT=pure $(PURE)/bin/python -m pytest $(PYTEST)

# The whole suite with every Python >= 3.11 that is installed.
test-all: test-system
	$(PYTHON) scripts/test_all.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_language.py

# In a minute: lint, types, and the tests that need neither HAProxy nor seconds.
check: lint
	$(BIN)/python -m pytest $(PYTEST) -n 4 -m 'not e2e and not slow' --hypothesis-profile=quick

# Lines of the sources that all tests run, uncompiled: a copy without compiled modules is tested.
# The settings are in pyproject.toml; build/coverage/html shows the lines. Tracing takes memory and
# time, which a few tests bound: the report comes although they fail.
coverage: test-system venv haproxy
	rm -rf build/coverage
	mkdir -p build/coverage
	cp -R src build/coverage/src
	find build/coverage/src -name '*.so' -delete
	-SPOAKIT_EXT=disable PYTHONPATH=$(CURDIR)/build/coverage/src \
		$(BIN)/python -m coverage run -m pytest $(PYTEST) $(COVERAGE)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage html -q
	$(BIN)/python -m coverage report

bench-system:
	sh scripts/require_system.sh $(PYTHON) wrk

# What does not install is left out, and its row in the table says so.
bench: bench-system venv
	-$(BIN)/python -m pip install -q --group bench
	-$(BIN)/python scripts/fetch_haproxy.py
	$(BIN)/python -m benchmarks.run $(BENCH)

fuzz: venv
	$(BIN)/python -m fuzz.run $(FUZZ)

# An hour, unless told otherwise: make soak SOAK='--minutes 5'.
soak: venv
	-$(BIN)/python scripts/fetch_haproxy.py
	$(BIN)/python -m soak.run $(SOAK)

# A wheel and a source distribution in dist/, each tried in a fresh environment.
wheel: venv
	$(BIN)/python -m pip install -q --group wheel
	$(BIN)/python scripts/make_wheel.py

clean:
	rm -rf $(VENV) $(PURE) build dist src/*.egg-info .mypy_cache .ruff_cache
	find src \( -name '*.so' -o -name '*_cy.c' -o -name __pycache__ \) -prune -exec rm -rf {} +
