# One command each on a fresh machine: `make demo`, `make test`, `make lint`.
# Every path is relative and make's own words hold no space, so a checkout below "my folder/" works too.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

.PHONY: install demo test lint format clean
.DEFAULT_GOAL := install

install: $(INSTALLED)

# The stamp makes a second run start at once; a changed dependency installs again.
$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "nextgpt needs Python 3.11 or newer, but PYTHON=$(PYTHON) is:" \
	    "$$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt --no-deps tinysoundfont
	@touch $(INSTALLED)

demo: install
	$(RUN) -m nextgpt demo

test: install
	HF_HUB_OFFLINE=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 4 $(ARGS)

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: install
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
