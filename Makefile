# make setup | quickstart | test | e2e-airflow | e2e-celery | lint | bench | bench-airflow | bench-distribution | bench-launch | bench-scale | bench-submit | soak. Every target builds .venv first when it is missing or out of date.

# Not the first python3 of the PATH: one that every account of the host can read, since tasks run as other users.
PYTHON ?= /usr/bin/python3
BIN    := .venv/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME

.PHONY: setup quickstart test test-host test-beside lint e2e-airflow e2e-celery bench bench-airflow bench-distribution bench-launch bench-scale bench-submit soak lock clean

setup: .venv/.ready

.venv/.ready: requirements/dev.txt pyproject.toml
	@if ! $(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3 python3-venv make gcc; \
	    else \
	        echo "dagseal needs $(PYTHON) >= 3.11 with venv (Debian: python3-venv)" >&2; exit 1; \
	    fi; \
	fi
	$(PYTHON) -m venv .venv
	@# Also as constraints: without, pip before 23.3 takes the newest release for a requirement that names an extra.
	$(BIN)/pip install -q --require-hashes -r requirements/dev.txt -c requirements/dev.txt
	$(BIN)/pip install -q --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	$(BIN)/python -m compileall -q integrity vocabulary submit_api worker_cache launcher notary dagseal
	@touch $@

quickstart: setup
	@d=$$(mktemp -d) && chmod 755 $$d && $(BIN)/dagseal quickstart --dir $$d/quickstart; code=$$?; rm -rf $$d; exit $$code

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two lanes side by side; one that fails lets the other go on. What an attack or a fault leaves behind is not the next suite's, so
# what looks at the host is one after the other, each with a stack of its own.
test: lint
	@$(MAKE) --no-print-directory --keep-going --jobs=2 test-host test-beside

test-host:
	$(BIN)/python -m pytest tests/root
	$(BIN)/python -m pytest tests/attacks
	$(BIN)/python -m pytest tests/faults

# It needs nothing of the host for itself. The last is here since this lane is the shorter one.
test-beside:
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/integration
	$(BIN)/python -m pytest tests/e2e

# Whole Airflow installations, plain and ours, side by side. As root; minutes.
e2e-airflow: setup
	$(BIN)/python -m pytest tests/whole_airflow/test_airflow_*.py --timeout=900

# CeleryExecutor: Redis and RabbitMQ, and three worker hosts in network namespaces. As root; minutes.
e2e-celery: setup
	$(BIN)/python -m pytest tests/whole_airflow/celery_hosts --timeout=900

bench: setup
	$(BIN)/python -m tests.bench

bench-airflow: setup
	$(BIN)/python -m tests.bench.whole_airflow

bench-launch: setup
	$(BIN)/python -m tests.bench.launching

bench-distribution: setup
	$(BIN)/python -m tests.bench.distributing

bench-scale: setup
	$(BIN)/python -m tests.bench.scale

bench-submit: setup
	$(BIN)/python -m tests.bench.submitting

soak: setup
	$(BIN)/python -m pytest tests -m soak --timeout=7200

# Hashed locks without index URLs. Needs uv.
lock:
	uv pip compile -q --python $(BIN)/python --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header pyproject.toml -o requirements/runtime.txt
	uv pip compile -q --python $(BIN)/python --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --all-extras pyproject.toml -o requirements/dev.txt
	uv pip compile -q --python $(BIN)/python --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --extra image -c requirements/dev.txt pyproject.toml -o requirements/image.txt

clean:
	rm -rf .venv build *.egg-info
