# `make quickstart` and `make test` need Python 3.11, 3.12 or 3.13, make and git; the rest is installed into .venv.

# The first of these that runs and has a version we support (a name on the path need not be one that works).
PYTHON ?= $(shell for python in python3.12 python3.11 python3.13 python3 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)

.PHONY: quickstart test lint bench clean

quickstart: .venv/installed
	.venv/bin/python -m limbeck.experiments.cli run quickstart

test: .venv/installed-dev
	.venv/bin/python -m pytest -m "not bench"

lint: .venv/installed-dev
	.venv/bin/python -m ruff check .
	.venv/bin/python -m pyright --pythonpath .venv/bin/python
	.venv/bin/lint-imports --no-logo

bench: .venv/installed-bench
	.venv/bin/python -m pytest -m bench

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that a new environment gets, so its presence says that the environment is whole.
.venv/bin/pip:
	@test -n "$(PYTHON)" || { echo "limbeck: no Python 3.11, 3.12 or 3.13 with its venv module was found;" \
		"install one (on Debian also python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: setup.cfg pyproject.toml | .venv/bin/pip
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: setup.cfg pyproject.toml | .venv/bin/pip
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[serve,test,lint]'
	touch .venv/installed $@

.venv/installed-bench: .venv/installed-dev
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[serve,test,lint,bench]'
	touch $@
