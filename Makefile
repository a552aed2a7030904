# danlu: make demo | test | check | serve | bench. Each does all of its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(VENV)/.packages
STAMP := $(VENV)/.installed

.PHONY: demo test check lint pytest serve system bench clean

# The lock names everything, so nothing is resolved; modules are compiled when they are first imported: half the time.
# Where Python is told not to keep what it compiled, every start would compile torch anew, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

$(PACKAGES): requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r requirements.lock
	touch $(PACKAGES)

$(STAMP): $(PACKAGES) pyproject.toml hatch_build.py web/.npmrc $(wildcard web/*.* web/public/* web/src/*.* web/src/ops/*)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(BIN)/python -m pip check
	touch $(STAMP)

demo: $(STAMP)  ## Tang poems in, a chat model out, in minutes
	$(BIN)/danlu run tang
	@echo
	@echo "Talk to it:      $(BIN)/danlu chat runs/tang"
	@echo "Chat and vote:   make serve   (http://127.0.0.1:8000)"

serve: $(STAMP)  ## the chat page; votes flow back
	$(BIN)/danlu serve runs/tang

check: lint $(STAMP)  ## lint, types, house and unit tests: about a minute
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "not slow and not browser and not gpu"

lint: $(PACKAGES)
	$(BIN)/ruff check src tests bench hatch_build.py
	$(BIN)/ruff format --check src tests bench hatch_build.py
	$(BIN)/mypy

system:  ## Chromium and PostgreSQL, which tests want
	sh scripts/install-browser.sh
	sh scripts/install-postgres.sh

pytest: $(STAMP) system
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test: lint pytest  ## everything but GPU tests; with -j3 lint goes beside them

bench: $(STAMP)  ## the claims: three seeds of recipe tang (about 40 minutes), then the three shapes in equal time
	$(BIN)/python bench/tang.py
	$(BIN)/python bench/shapes.py runs/bench-tang-0

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
