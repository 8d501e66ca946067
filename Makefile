# make run   one sample case through process.py, with a picture
# make test  the whole test suite
# Both set up .venv first; nothing is installed outside it.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
CASE   ?= test/cases/phantom-1
OUTPUT ?= output
# One tested release; on a GPU machine it brings CUDA along.
TORCH  ?= torch==2.13.0

.PHONY: run test test-slow lint setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10" >&2; exit 1; }
	@test -x $(PY) || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing packages into $(VENV) (minutes, the first time)"
	@$(PY) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
	@# The peer network resenc-unet; its dependency timm (for torchvision) is not used by it.
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps 'dynamic-network-architectures>=0.4,<0.5'
	@touch $@

run: setup
	@$(PY) process.py --input $(CASE)/input --output $(OUTPUT) \
		--picture $(OUTPUT)/picture.png --report $(OUTPUT)/report.json

test: setup
	@$(PY) -m pytest $(PYTEST_ARGS)

test-slow: setup
	@$(PY) -m pytest -m slow $(PYTEST_ARGS)

lint: setup
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

clean:
	rm -rf $(VENV) $(OUTPUT)
