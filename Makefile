# make run   one sample case through hmvnet predict, with a picture
# make test  the whole test suite
# Both set up .venv first; nothing is installed outside it.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
CASE   ?= test/cases/phantom-1
OUTPUT ?= output
COUNT  ?= 2500
SEED   ?= 0
# One tested release; on a GPU machine it brings CUDA along.
TORCH  ?= torch==2.13.0
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-slow fuzz faults lint docs tutorial wheel resolve constraints audit setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10" >&2; exit 1; }
	@test -x $(PY) || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing packages into $(VENV) (minutes, the first time)"
	@$(PIP) "$(TORCH)"
	@$(PIP) --constraint constraints.txt -e '.[train,excel,dicom,cluster,openvino,dev]'
	@# Survival models and docs where their packages have wheels; the tests that need them say so.
	@$(PIP) --constraint constraints.txt --only-binary ecos,osqp,scikit-survival -e '.[baselines]' \
		|| echo "note: no wheels of scikit-survival for this Python; survival models are left out"
	@# nnU-Net's networks, that ours are held against; their dependency timm (for torchvision) is not used.
	@$(PIP) --no-deps 'dynamic-network-architectures>=0.4,<0.5'
	@touch $@

run: setup
	@# A copy: cases of 2026 are links. What is process.py's alone is left out of a case's settings.
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && cp -RL $(CASE) "$$scratch/" \
		&& $(VENV)/bin/hmvnet predict "$$scratch/$(notdir $(patsubst %/,%,$(CASE)))/input" --output $(OUTPUT) --force \
		$(shell sed -E 's/--(task|on-error) [^ ]+//g' $(CASE)/settings 2> /dev/null)

test: setup
	@$(PY) -m pytest $(PYTEST_ARGS)

test-slow: setup
	@$(PY) -m pytest -m slow $(PYTEST_ARGS)

# Drawn inputs of every kind, each with the outcome that is right: make fuzz COUNT=2000 SEED=1
fuzz: setup
	@PYTHONPATH=test $(PY) -m fuzz --count $(COUNT) --seed $(SEED)

# Killed processes, full disks, several at once, short memory: some 20 minutes, a table at the end.
faults: setup
	@$(PY) test/faults.py $(FAULTS_ARGS)

lint: setup
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

# The docs site, built strictly into build/site.
docs: setup
	@$(PIP) --constraint constraints.txt -e '.[docs]'
	@$(VENV)/bin/properdocs build --strict --quiet

# Every block of docs/tutorial.md, in order.
tutorial: setup
	@$(PY) .ci/tutorial.py docs/tutorial.md

# A wheel, in an environment of its own, tried from an empty folder.
wheel: setup
	@bash .ci/wheel.sh

# Whether base and train resolve to wheels alone on every Python that is supported.
resolve: setup
	@bash .ci/resolve.sh

# The exact versions of this environment, names and versions only.
constraints: setup
	@$(PY) .ci/constraints.py > constraints.txt

# Known vulnerabilities of these versions; says "not run" where their list cannot be had.
audit: setup
	@if $(PIP) pip-audit; then $(PY) .ci/audit.py constraints.txt "$(TORCH)"; \
		else echo "not run: pip-audit cannot be installed"; fi

clean:
	rm -rf $(VENV) $(OUTPUT)
