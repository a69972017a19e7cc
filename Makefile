# make setup · make demo · make test · make check · make prove
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# threads that spin while they wait starve each other on small machines
export OMP_WAIT_POLICY := PASSIVE
export MODELYARD_QUIET_SETUP ?=

.PHONY: setup demo test check prove docs matrix clean

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt tests/probes/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' --editable tests/probes
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

check: setup
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile

# slower proofs: hundreds of kills, thousands of dirty tables, whole test sets, the core-only environment
prove: setup
	$(BIN)/python tests/crash/prove_resume.py
	$(BIN)/python tests/crash/prove_tune.py
	$(BIN)/python tests/crash/prove_dirty.py
	$(BIN)/python tests/crash/prove_serve.py
	$(BIN)/python tests/crash/prove_chat.py
	$(BIN)/python tests/crash/prove_security.py
	$(BIN)/python tests/crash/prove_container.py
	$(BIN)/pip install --quiet schemathesis && $(BIN)/python tests/crash/prove_schema.py --requests 5000
	$(BIN)/python benchmarks/core.py
	$(BIN)/python benchmarks/parity.py

# docs/reference and docs/matrix.md from the schema and from what runs
docs: setup
	$(BIN)/python docs/generate.py

matrix: setup
	$(BIN)/python -m pytest tests/test_verbs.py --refresh

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
