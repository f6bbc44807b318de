# `make train` and `make test` do all the set-up that they need, on a fresh machine too.
PYTHON ?= python3
BIN := .venv/bin
# Tests compute little at a time: one thread each is fastest, and two busy OpenMP pools on two cores crawl.
QUIET := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
TEST_ENV := $(QUIET) OMP_NUM_THREADS=1 MPLBACKEND=Agg

.DEFAULT_GOAL := help

.PHONY: help
help:  ## say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: install
install: .venv/installed  ## create .venv and install poise into it, with the tested versions

.PHONY: train
train: .venv/installed  ## train the embedded model on the embedded tasks (about five minutes on two cores)
	$(QUIET) $(BIN)/poise train

.PHONY: format
format: .venv/installed  ## format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: check
check: .venv/installed  ## format check, lint, types and import rules: the fast part of `make test`
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(TEST_ENV) $(BIN)/python -m pytest -q tests/test_architecture.py

.PHONY: test
test: check  ## everything that CI runs: checks and tests
	$(TEST_ENV) $(BIN)/python -m pytest -m 'not slow and not gpu and not browser' -n 2 --dist worksteal --durations=10

# verl caps transformers below what the rest is tested with, so it has an environment of its own. torch comes first, alone:
# left to choose, pip would take a build with several gigabytes of CUDA libraries.
.venv-verl/installed: pyproject.toml constraints-verl.txt
	test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	.venv-verl/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-verl.txt torch
	.venv-verl/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-verl.txt -e '.[verl,train]' pytest beartype
	@touch $@

.PHONY: test-verl
test-verl: .venv-verl/installed  ## the tests of the verl engine, in an environment of its own (.venv-verl)
	$(TEST_ENV) .venv-verl/bin/python -m pytest -c tests/engines/verl/pytest.ini -m 'not network and not slow' --durations=5 tests/engines/verl

.PHONY: test-verl-slow
test-verl-slow: .venv-verl/installed  ## whole runs on verl beyond the one of test-verl: one that samples ahead, killed and resumed
	$(TEST_ENV) .venv-verl/bin/python -m pytest -c tests/engines/verl/pytest.ini -m slow tests/engines/verl

.PHONY: test-verl-install
test-verl-install: .venv-verl/installed  ## let pip resolve the line that installs poise with vLLM on NVIDIA machines (four minutes)
	$(TEST_ENV) .venv-verl/bin/python -m pytest -c tests/engines/verl/pytest.ini tests/engines/verl/test_verl_install.py

.PHONY: test-slow
test-slow: .venv/installed  ## the tests that take minutes
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

.PHONY: test-kill
test-kill: .venv/installed  ## kill a run at 20 random moments, resume it, compare byte by byte (ten minutes)
	$(TEST_ENV) $(BIN)/python scripts/kill_and_resume.py --kills 20

.PHONY: test-soak
test-soak: .venv/installed  ## ten minutes of fuzzed steps, corrupted checkpoints, killed and raced runs, hostile rewards
	$(TEST_ENV) $(BIN)/python scripts/soak.py --minutes 10

# How constraints-lowest.txt is made stands at its head.
.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt torch
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[train,tasks]' \
		pytest pytest-xdist beartype hypothesis
	@touch $@

.PHONY: test-lowest
test-lowest: .venv-lowest/installed  ## library, TRL engine, commands and rewards with the lowest versions that pyproject.toml allows
	$(TEST_ENV) .venv-lowest/bin/python -m pytest -q -m 'not slow and not gpu' -W default -n 2 --dist worksteal \
		tests/test_online.py tests/features tests/tasks tests/engines tests/train tests/cli --ignore tests/engines/verl

# An old version with known vulnerabilities is looked up first: where none is found, the list cannot be reached.
AUDIT := .venv-audit/bin/pip-audit --no-deps --disable-pip --progress-spinner off
.PHONY: audit
audit:  ## look for known vulnerabilities of the tested versions, where their list can be reached
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit; }
	@echo 'jinja2==2.4.1' > .venv-audit/old.txt
	@if $(AUDIT) -r .venv-audit/old.txt 2>&1 | grep -q '^Found'; then \
		for each in constraints.txt constraints-verl.txt; do echo "$$each:"; $(AUDIT) --strict -r $$each || exit 1; done; \
	else echo "skipped: the list of known vulnerabilities cannot be reached from here"; fi

# The wheel alone in a fresh environment, away from the checkout: what a user's `pip install` gives.
.PHONY: dist
dist: .venv/installed  ## build wheel and sdist, install the wheel alone and with [train], and run both
	rm -rf dist .venv-dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && OMP_NUM_THREADS=1 ../.venv-dist/bin/python -c "import runpy; runpy.run_path('../examples/own_loop.py')['train'](20)"
	! .venv-dist/bin/poise --help
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(ls dist/*.whl)[train]"
	cd dist && $(TEST_ENV) ../.venv-dist/bin/poise train --steps 2 --eval-prompts 32 --output runs

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

.PHONY: docs
docs: .venv/docs  ## build the documentation site into site/, every link checked
	$(QUIET) $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

.PHONY: test-browser
test-browser: .venv/installed  ## the page of a run in headless Chromium (chromium and chromedriver from the system)
	$(TEST_ENV) $(BIN)/python -m pytest -m browser -rs tests/report

.PHONY: screenshots
screenshots: .venv/installed  ## pictures of a run's page into docs/images (headless Chromium; trains a run if there is none)
	$(QUIET) $(BIN)/python scripts/screenshots.py

.PHONY: test-gpu
test-gpu: .venv/installed  ## the tests that need a CUDA device
	$(QUIET) $(BIN)/python -m pytest -m gpu

.PHONY: bench
bench: .venv/installed  ## all benchmarks, an hour on two quiet cores; results go to benchmarks/results/
	$(TEST_ENV) $(BIN)/python benchmarks/baseline_error.py
	$(TEST_ENV) $(BIN)/python benchmarks/projection.py
	$(TEST_ENV) $(BIN)/python benchmarks/fit.py
	$(TEST_ENV) $(BIN)/python benchmarks/gradient_variance.py
	$(TEST_ENV) $(BIN)/python benchmarks/overhead.py
	$(TEST_ENV) $(BIN)/python benchmarks/full_size.py
	$(TEST_ENV) $(BIN)/python benchmarks/reward_workers.py
	$(TEST_ENV) $(BIN)/python benchmarks/driver_cost.py
