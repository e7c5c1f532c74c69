# make demo   the whole loop on the models the project ships, in minutes
# make test   formatting, lint and all tests
# make lint   formatting and lint only
# make pocket train the shipped models again, from nothing
# make clean  remove .venv and caches; runs are kept

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.11 python3 python,$(shell $(p) -c \
	'import sys; sys.version_info[:2] == (3, 11) and print(sys.executable)' 2>/dev/null)))
PIP = .venv/bin/python -m pip --disable-pip-version-check --quiet install

.PHONY: demo test lint pocket clean

demo: .venv/core.stamp
	.venv/bin/workbench run arte-demo --name demo

test: lint
	.venv/bin/python -m pytest

lint: .venv/test.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

pocket: .venv/core.stamp
	.venv/bin/python -m workbench.pocket tasks
	.venv/bin/python -m workbench.pocket models

.venv/core.stamp: pyproject.toml | .venv/bin/python
	@echo "Installing what the workbench needs into .venv (a few minutes the first time)"
	$(PIP) --editable .
	@touch $@

.venv/test.stamp: pyproject.toml | .venv/bin/python
	@echo "Installing what the workbench and its tests need into .venv (a few minutes the first time)"
	$(PIP) --editable '.[test]'
	@touch .venv/core.stamp $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 was not found; install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	"$(PYTHON)" -m venv .venv

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info
	find workbench tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +
