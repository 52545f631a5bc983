# make demo | make run | make test | make quick. Everything is set up on the way; nothing outside the checkout is touched
# but missing system packages, and those only where permitted.
SHELL := /bin/bash
VENV ?= .venv
PORT ?= 8000
BIN := $(VENV)/bin

.PHONY: demo run test quick check audit setup clients clean
.DEFAULT_GOAL := demo

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml .ci/setup
	bash .ci/setup $(VENV) --without-clients
	touch $@

clients: $(VENV)-clients/.ready

$(VENV)-clients/.ready: $(wildcard tests/clients/*.txt) | setup
	bash .ci/setup $(VENV)
	touch $@

demo: setup
	VENV=$(VENV) bash docs/demo.sh

run: setup
	PORT=$(PORT) $(BIN)/rtprune serve

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# known vulnerabilities of what is installed; needs an index that knows them
audit: setup
	bash .ci/audit $(VENV)

test: check clients
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -rs

quick: setup
	$(BIN)/pytest -n 2 --dist loadfile tests/rtprune tests/output tests/evaluation tests/models tests/jobs/test_places.py tests/jobs/test_live_text.py tests/deploy/test_structure.py

clean:
	rm -rf $(VENV) $(VENV)-clients build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
