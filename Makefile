# Commands for developers. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := keepfit gateway workers snapshotter benchmarks docs/site examples tests
PEERS := echo fastapi mlserver litserve bentoml river
BENCH := benchmarks/.venvs

# Loops in tests and benchmarks are compared with workers, whose string hashes have this seed.
export PYTHONHASHSEED ?= 0
# The tests start hundreds of processes: without compiled modules, each compiles keepfit again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test docs linkcheck lint types audit coverage mutants faults history-faults cluster-faults rolling-restarts abuse published bench pins release-check client nodes picture sneakers clean

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp file per set of packages: make installs a set only when its pins are newer than its stamp.
# base.txt has what clients need, runtime.txt what the services need, local.txt in addition the servers of `keepfit up`,
# and the packages of the demo and of the history.
$(VENV)/.local: requirements/local.txt requirements/runtime.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/local.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.local
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/test.txt
	@touch $@

$(VENV)/.docs: requirements/docs.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

run: $(VENV)/.local  ## Run the demo: learn a year of flights, lose Redis, recover; the service stays up unless ONCE=1
	$(BIN)/keepfit demo $(if $(ONCE),--once)

test: lint types  ## Run every check that a change must pass: lint, types, tests on real servers (EXAMPLES=random)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 10 --durations-min 1 $(if $(EXAMPLES),--hypothesis-profile $(EXAMPLES))

docs: $(VENV)/.docs  ## Build the documentation site in build/docs; open build/docs/index.html
	$(BIN)/sphinx-build -q -W --keep-going -b html -d build/doctrees -c docs/site . build/docs

# Not part of `test`: it asks other hosts. Links within the repository, and the form of all others, are tested.
linkcheck: $(VENV)/.docs  ## Ask the hosts that the documentation links to whether each page is there (needs a network)
	$(BIN)/sphinx-build -q -b linkcheck -d build/doctrees -c docs/site . build/linkcheck

coverage: $(VENV)/.test  ## Run the tests with coverage of all processes that they start
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --cov --cov-config=tests/coverage.ini --cov-report=term:skip-covered --cov-fail-under=85

mutants: $(VENV)/.test  ## Test every mutant of the Lua scripts, cut the append-only file at every byte, write docs/contributing/scripts.md
	$(BIN)/python -m tests.scripts

lint: $(VENV)/.test  ## Check style, import rules and security (ruff, import-linter, bandit)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports --no-logo
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive keepfit gateway workers snapshotter

types: $(VENV)/.test  ## Check types with mypy --strict
	$(BIN)/mypy
	$(BIN)/mypy examples/*/*.py

# Not part of `test`: it queries the public package index for each pinned version and fails without an answer.
audit: $(VENV)/.test  ## Report known vulnerabilities in the pinned versions (queries the public package index)
	$(BIN)/uv tool run --from pip-audit==2.10.1 pip-audit --strict --disable-pip --no-deps -r requirements/local.txt

# Not part of `test` either: two of its tools come from the package index.
release-check: $(VENV)/.test  ## Build wheel, source distribution and list of components in dist/, and check what a release needs
	$(BIN)/python -m tests.release

faults: $(VENV)/.test  ## Inject faults under load for 20 minutes, verify what was learned, write docs/operations/reliability.md (SECONDS=300, SEED=11)
	$(BIN)/python -m tests.faults $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

history-faults: $(VENV)/.test  ## Kill MongoDB's server ten times in 30 minutes of writing and reading the history, verify it (SECONDS=120, KILLS=2)
	$(BIN)/python -m tests.recovery.history --seconds $(or $(SECONDS),1800) --kills $(or $(KILLS),10)

cluster-faults: $(VENV)/.test  ## Kill 30 primaries of a Redis Cluster under load and count the rows that are lost (KILLS=3, ROWS=5000, REPLICAS_MIN=0)
	$(BIN)/python -m tests.recovery.cluster_storm --kills $(or $(KILLS),30) --rows $(or $(ROWS),50000) --replicas-min $(or $(REPLICAS_MIN),1)

rolling-restarts: $(VENV)/.test  ## Restart two gateways and two supervisors of workers under load, and count what clients notice (ROUNDS=10)
	$(BIN)/python -m tests.recovery.rolling --rounds $(or $(ROUNDS),10)

abuse: $(VENV)/.test  ## Attack a stack for 10 minutes, measure what another client notices, write docs/operations/abuse.md (SECONDS=120, SEED=11)
	$(BIN)/python -m tests.abuse $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

published: $(VENV)/.test  ## Compute every figure that River and scikit-learn publish, with keepfit too, write docs/reference/published-figures.md
	$(BIN)/python -m tests.published

# Each peer has its own environment; the environment of the harness has keepfit.
$(BENCH)/%/.installed: benchmarks/requirements/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(BENCH)/harness/.installed: benchmarks/requirements/harness.txt requirements/local.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/local.txt -r $<
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

bench: $(BENCH)/harness/.installed $(PEERS:%=$(BENCH)/%/.installed)  ## Benchmark keepfit and its peers, write docs/operations/performance.md (QUICK=1, ONLY=keepfit); needs wrk
	$(BENCH)/harness/bin/python -m benchmarks $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

pins: $(VENV)/.test  ## Pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile -q --universal --no-header --no-annotate --no-emit-index-url pyproject.toml --extra server -o requirements/runtime.txt --upgrade
	$(BIN)/uv pip compile -q --universal --no-header --no-annotate --no-emit-index-url pyproject.toml -c requirements/runtime.txt -o requirements/base.txt --upgrade
	$(BIN)/uv pip compile -q --universal --no-header --no-annotate --no-emit-index-url pyproject.toml --extra local --extra demo --extra history -c requirements/runtime.txt -o requirements/local.txt --upgrade
	$(BIN)/uv pip compile -q --universal --no-header --no-annotate --no-emit-index-url pyproject.toml --extra docs -c requirements/local.txt -o requirements/docs.txt --upgrade
	$(BIN)/uv pip compile -q --universal --no-header --no-annotate --no-emit-index-url pyproject.toml --extra local --extra demo --extra history --extra test -c requirements/local.txt -c requirements/docs.txt -o requirements/test.txt --upgrade
	$(BIN)/uv pip compile -q --universal --no-header --no-annotate --no-emit-index-url pyproject.toml --extra server --extra frames --extra history --extra river -c requirements/test.txt -o requirements/extras.txt --upgrade
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url tests/clients/requirements.in -o tests/clients/requirements.txt --upgrade
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url tests/inference_clients/requirements.in -o tests/inference_clients/requirements.txt --upgrade
	for name in harness $(PEERS); do \
		$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url -c requirements/local.txt benchmarks/requirements/$$name.in -o benchmarks/requirements/$$name.txt --upgrade || exit 1; \
	done

client: $(VENV)/.test  ## Write the types of the Node.js client from the OpenAPI document (clients/node/src/schemas.ts)
	$(BIN)/python -m tests.clients.node

# Not part of `test`: each release is a download of 40 MB from npm's registry, and takes half a minute.
nodes: $(VENV)/.test  ## Run the tests of the Node.js client on older releases of Node.js (VERSIONS="18.20.8")
	for version in $(or $(VERSIONS),18.20.8 20.20.2 22.23.5); do \
		NODE_VERSION=$$version $(BIN)/python -m pytest -q tests/clients/test_node_client.py tests/clients/test_both_clients.py || exit 1; \
	done

picture: $(VENV)/.test  ## Write pictures of the dashboard, from models that learn (pictures/)
	$(BIN)/python -m tests.browser.picture pictures

sneakers: $(VENV)/.test  ## Start keepfit and the example of a Node.js service (examples/sneakers)
	examples/sneakers/start.sh

clean:  ## Remove environments and caches; keep the data in .keepfit
	rm -rf $(VENV) $(BENCH) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
