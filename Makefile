# The handful of verbs; each sets up what it needs. See README.md.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test check e2e e2e-long fuzz model bench docs java clean

help:            ## Show the verbs
	@grep -E '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: .venv/ready  ## Make .venv with pinned versions of everything

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Strongroom needs Python 3.11 to 3.13; say which: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up .venv (about two minutes, half a gigabyte, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[spark,hdfs,models,demo,dev]' 2>&1 \
	  | { grep -v -E '^WARNING: Location|^ *\[notice\]' || true; }
	@$(BIN)/strongroom --version
	@touch $@

demo: setup      ## The main job on real data: seal, attest, release, run, open, refuse
	@$(BIN)/strongroom demo --folder demo

test: setup      ## Unit, conformance, vector, integration and attack tests (under ten minutes)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not e2e and not example and not long"

check: setup     ## Lint, types, import contracts, generated pages and the jar against their sources
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q src && $(BIN)/mypy && $(BIN)/lint-imports --no-logo \
	  && COLUMNS=100 $(BIN)/python scripts/reference.py --check
	@if command -v javac >/dev/null; then java/build.sh --check $$($(BIN)/python -c 'import pathlib, pyspark; \
	  print(pathlib.Path(pyspark.__file__).parent / "jars")') src/strongroom/jobs/workloads/strongroom-spark.jar; \
	  else echo "no javac here: the committed jar was not compared with its sources (apt-get install openjdk-17-jdk-headless)"; fi

# .ci/run has time for a part: make e2e E2E=e2e
E2E ?= (e2e or example)

e2e: setup       ## Whole commands on real engines, every example (an hour)
	@[ "$(E2E)" = e2e ] || $(BIN)/pip install -q -c constraints.txt xgboost-cpu scikit-learn skops
	@$(BIN)/python -m pytest -m "$(E2E) and not long"

e2e-long: setup  ## Three hosts, HDFS, S3, limits, every PySpark example (three hours); writes docs/reference
	@$(BIN)/python -m tests.e2e.spark_examples && $(BIN)/python -m pytest -m long

# Each finding prints the command that shows it again; what earlier runs learnt is in .fuzz.
fuzz: .venv/fuzz  ## Fuzz every parser of outside bytes, FUZZ_SECONDS (60) each, FUZZ_JOBS (2) at a time
	@$(BIN)/python -m fuzz.run && $(BIN)/python -m fuzz.api

.venv/fuzz: .venv/ready constraints.txt
	@$(BIN)/pip install -q --only-binary :all: -c constraints.txt atheris schemathesis 2>/dev/null \
	  || { echo "atheris has no wheel for this Python and machine; Python 3.11 to 3.13 on x86-64 Linux have one"; exit 1; }
	@touch $@

model: setup     ## Prove that no key leaves without a fresh matching appraisal; without any rule, an attack (seconds)
	@$(BIN)/pip install -q -c constraints.txt z3-solver 2>/dev/null && $(BIN)/python -m tests.model.release_protocol

bench: setup     ## Speed as ratios, side by side; writes benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks.run
	@[ -d .venv-plots ] || { $(PYTHON) -m venv .venv-plots && .venv-plots/bin/pip install -q "matplotlib==3.11.2"; }
	@.venv-plots/bin/python benchmarks/plots.py

docs: setup      ## Generate docs/reference
	@COLUMNS=100 $(BIN)/python scripts/reference.py

java:            ## Rebuild the jars (needs javac 17)
	@jars=$$($(BIN)/python -c 'import pathlib, pyspark; print(pathlib.Path(pyspark.__file__).parent / "jars")'); \
	  main=src/strongroom/jobs/workloads/strongroom-spark.jar; java/build.sh "$$jars" $$main && \
	  SOURCES=test MAIN_JAR=$$main java/build.sh "$$jars" tests/fakes/java_checks.jar

clean:           ## Remove everything that was made here
	rm -rf .venv .venv-plots demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .fuzz
