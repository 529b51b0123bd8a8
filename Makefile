# make run             set everything up, start the server on 127.0.0.1:9034 (ARGS="--port 9035" passes options on)
# make test            set everything up, run the tests but for the slowest (some four minutes)
# make check           lint, types, and all tests with branch coverage: what a change must pass
# make soak            20 hostile clients for a minute: the memory's bound, the honest chat (ARGS="--seconds 600")
# make crash-test      kill the server 200 times, under load and while it starts, and look for anything lost
# make fuzz            any bytes, as long as you like: guided by coverage, then over sockets (ARGS="--seconds 600")
# make slow-reader     what slow readers cost everyone else (about eight minutes)
# make restart-test    how clients come back when the server restarts (under a minute)
# make group-test      the wire tests against groups: two and three nodes, directly and behind HAProxy (ten minutes)
# make bench           CPU, latency and memory beside other servers (some forty minutes; those found on PATH)
# make bench-quick     the two most telling figures of it (about a minute)
# make bench-tester    how many messages a second one Locust process drives (about two minutes)
# make pictures        take the docs' pictures of the load tester anew (needs Chromium)
# make clean           remove what make has made; never the database in data/

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test check lint types coverage soak crash-test fuzz slow-reader restart-test group-test bench bench-quick bench-tester pictures clean

run: $(VENV)/installed
	@exec $(BIN)/python server.py $(ARGS)

# Four runs share the tests, since most of their time is waiting; what they print comes at the end of each.
RUNS = 1 2 3 4
AT_ONCE = @export SHARE=$$(mktemp -d) && trap 'rm -rf "$$SHARE"' EXIT && \
	$(MAKE) --no-print-directory -j$(words $(RUNS)) $(if $(filter output-sync,$(.FEATURES)),--output-sync)
SHARED = $(BIN)/python -m pytest -q "--share=$$SHARE"

test: $(VENV)/installed-dev
ifdef ARGS
	$(BIN)/python -m pytest -m "not slow" $(ARGS)
else
	@echo "running all tests but the slowest, in four runs at once: some four minutes"
	$(AT_ONCE) $(RUNS:%=test-%)
endif

test-%:
	@$(SHARED) -m "not slow"

check: lint types coverage

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy .

coverage: $(VENV)/installed-dev
	@rm -f .coverage .coverage.*
	@echo "running all tests, in four runs at once: some twelve minutes"
	$(AT_ONCE) $(RUNS:%=coverage-%)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --show-missing --skip-covered

coverage-%:
	@COVERAGE_FILE=.coverage.$* $(SHARED) --cov --cov-report= --cov-fail-under=0

soak: $(VENV)/installed
	@$(BIN)/python -m stress.hostile $(ARGS)

bench: $(VENV)/installed-bench
	@$(BIN)/python -m benchmarks.compare $(ARGS)

bench-quick: $(VENV)/installed-bench
	@$(BIN)/python -m benchmarks.compare --quick $(ARGS)

bench-tester: $(VENV)/installed
	@$(BIN)/python -m benchmarks.tester $(ARGS)

crash-test: $(VENV)/installed-dev
	@$(BIN)/python -m stress.crash $(ARGS)

fuzz: $(VENV)/installed-dev
	@$(BIN)/python -m stress.fuzz $(ARGS)

slow-reader: $(VENV)/installed
	@$(BIN)/python -m stress.slow_reader $(ARGS)

restart-test: $(VENV)/installed-dev
	@$(BIN)/python -m stress.restart $(ARGS)

WIRE = client client_features chat errors history mailbox presence receipts
GROUPS = "--group=2" "--group=3" "--group=2 --haproxy" "--group=3 --haproxy"

group-test: $(VENV)/installed-dev
	@for group in $(GROUPS); do $(BIN)/python -m pytest -q $$group $(WIRE:%=tests/test_%.py) || exit 1; done

pictures: $(VENV)/installed-dev
	$(BIN)/python -m testkit.screenshots docs/pictures

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed benchmarks/requirements.txt
	@echo "adding what the benchmark needs"
	@$(PIP_INSTALL) -r benchmarks/requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt benchmarks/requirements.txt
	@echo "adding what testing needs"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@
