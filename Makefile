# `make help` lists the targets. ARGS passes options on: make run ARGS="--port 9035"

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL = help
.PHONY: help run unit test check lint types coverage wire-test group-test soak crash-test fuzz slow-reader restart-test \
	bench bench-quick bench-tester pictures clean

help: ## list the targets
	@echo 'usage: make TARGET [ARGS="options of the program"]'
	@sed -n 's/^\([a-z-]*\):.*## /\1:/p' $(firstword $(MAKEFILE_LIST)) | awk -F: '{ t = $$1; sub("^[^:]*:", ""); printf "  %-14s%s\n", t, $$0 }'

run: $(VENV)/installed ## set everything up and start the server on 127.0.0.1:9034
	@exec $(BIN)/python server.py $(ARGS)

# Most of a test's time is waiting, so four run at once, also on two cores. Each takes the next test that is left.
AT_ONCE = -n 4 --dist load --maxschedchunk 1
PYTEST = $(BIN)/python -m pytest -q

unit: $(VENV)/installed-dev ## run the tests that start no process (20 seconds)
	@$(PYTEST) -n logical -m unit --hypothesis-profile=quick $(ARGS)

test: $(VENV)/installed-dev ## run all tests except the slow ones (four minutes); with ARGS in one process: ARGS="-k tls -x"
	@$(PYTEST) $(if $(ARGS),$(ARGS),$(AT_ONCE)) -m "not slow"

check: lint types coverage ## lint, types and all tests with branch coverage: what a change must pass (twelve minutes)

lint: $(VENV)/installed-dev ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev ## check types
	$(BIN)/mypy .

coverage: $(VENV)/installed-dev ## run all tests with branch coverage, also of the processes they start
	@rm -f .coverage .coverage.*
	@$(PYTEST) $(AT_ONCE) --cov --cov-report=term-missing:skip-covered

WIRE = client client_features chat errors history mailbox presence receipts
WIRE_TESTS = $(WIRE:%=tests/test_%.py)
GROUPS = "--group=2" "--group=3" "--group=2 --haproxy" "--group=3 --haproxy"

wire-test: $(VENV)/installed-dev ## run the tests of the protocol against a real server
	@$(PYTEST) $(AT_ONCE) $(WIRE_TESTS) $(ARGS)

group-test: $(VENV)/installed-dev ## run them against groups of two and three nodes, directly and behind HAProxy (ten minutes)
	@for group in $(GROUPS); do $(PYTEST) $$group $(WIRE_TESTS) || exit 1; done

soak: $(VENV)/installed ## 20 hostile clients for a minute: memory stays bounded, honest users can chat (ARGS="--seconds 600")
	@$(BIN)/python -m stress.hostile $(ARGS)

crash-test: $(VENV)/installed-dev ## kill the server 200 times, under load and during its start, and look for anything lost
	@$(BIN)/python -m stress.crash $(ARGS)

fuzz: $(VENV)/installed-dev ## send any bytes: first guided by coverage, then over sockets (ARGS="--seconds 600")
	@$(BIN)/python -m stress.fuzz $(ARGS)

slow-reader: $(VENV)/installed ## measure what slow readers cost everybody else (eight minutes)
	@$(BIN)/python -m stress.slow_reader $(ARGS)

restart-test: $(VENV)/installed-dev ## measure how clients come back when the server restarts (one minute)
	@$(BIN)/python -m stress.restart $(ARGS)

bench: $(VENV)/installed-bench ## compare CPU, latency and memory with other servers that are on PATH (forty minutes)
	@$(BIN)/python -m benchmarks.compare $(ARGS)

bench-quick: $(VENV)/installed-bench ## the two most telling figures of it (one minute)
	@$(BIN)/python -m benchmarks.compare --quick $(ARGS)

bench-tester: $(VENV)/installed ## measure how many messages a second one Locust process drives (two minutes)
	@$(BIN)/python -m benchmarks.tester $(ARGS)

pictures: $(VENV)/installed-dev ## take the docs' pictures again (needs Chromium)
	$(BIN)/python -m testkit.screenshots docs/pictures
	$(BIN)/python -m testkit.terminal_picture docs/pictures/chat.svg

clean: ## remove what make has made, but never the database in data/
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov build dist *.egg-info

$(VENV)/requirements: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

# Editable: `locust -f locustfiles/chat.py` and the commands of pyproject.toml then work in any folder.
$(VENV)/installed: $(VENV)/requirements pyproject.toml _protocol.c
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed benchmarks/requirements.txt
	@echo "adding the packages that the benchmark needs"
	@$(PIP_INSTALL) -r benchmarks/requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt benchmarks/requirements.txt
	@echo "adding the packages that the tests need"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@
