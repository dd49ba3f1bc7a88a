# Two commands are all there is to know: `make run` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := nnbuild tasks flows tests benchmarks docs
# What other projects' releases have broken: Keras's steps and files, ONNX, Arrow, DuckDB, Prefect's flows,
# its scheduler and its embedded server.
SHORT_SUITE := tests/pipeline/test_run.py tests/models/test_serialization.py tests/models/test_onnx_export.py tests/scoring/test_table.py \
	tests/store/test_readers.py tests/flows/test_retrain.py tests/e2e/test_work_pool.py tests/runtime/test_starting.py

.PHONY: run test test-newest lint docs reference format lock bench soak clean

run: $(VENV)/installed  ## Retrain on MNIST (on digits where MNIST cannot be had), score, report
	$(BIN)/nnbuild run --fallback digits $(ARGS)

test: $(VENV)/installed-test  ## The whole test suite
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

test-newest:  ## A short suite with the newest versions that pyproject.toml allows, without the lock
	rm -rf $(VENV)-newest
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip --disable-pip-version-check --quiet install -e ".[test]"
	@echo "versions that differ from the lock:"
	@sed 's/ *;.*//' constraints.txt > $(VENV)-newest/lock.txt
	@$(VENV)-newest/bin/python -m pip --disable-pip-version-check list --format freeze | tr 'A-Z_' 'a-z-' \
		| grep -vxFf $(VENV)-newest/lock.txt || true
	$(VENV)-newest/bin/python -m pytest -n 2 --dist loadfile $(SHORT_SUITE)

lint: $(VENV)/installed-lint  ## Linters and type checks
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $(filter-out tests,$(SOURCES)) docs README.md CHANGELOG.md

docs: $(VENV)/installed-docs  ## The pages of docs/ and the API, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

reference: $(VENV)/installed  ## The generated parts of docs/reference/: options, settings, tables
	$(BIN)/python docs/_generate.py

format: $(VENV)/installed-lint  ## Lay out the code
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(VENV)/installed-test  ## What a run costs beside a bare script, and with Prefect beside without it
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/prefect_cost.py

soak: $(VENV)/installed-test  ## Kill real runs everywhere, resume and compare; KILLS=100
	$(BIN)/python benchmarks/crash_recovery.py --kills $(or $(KILLS),100)

lock:  ## Choose the newest versions that fit pyproject.toml, for Python 3.11 to 3.13
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip --quiet install "uv>=0.5"
	$(VENV)-lock/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-header --no-emit-index-url --no-annotate --upgrade --output-file constraints.txt
	rm -rf $(VENV)-lock

clean:  ## Remove what was installed and built
	rm -rf $(VENV) $(VENV)-newest build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and f"nnbuild needs Python 3.11 to 3.13, this is {sys.version.split()[0]}; say make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e ".[test]"
	touch $@ $(VENV)/installed

$(VENV)/installed-lint: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e ".[test,lint]"
	touch $@ $(VENV)/installed-test $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -c constraints.txt -e ".[docs]"
	touch $@
