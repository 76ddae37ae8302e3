# Two commands on a fresh machine: "make demo" and "make test". Both set up .venv first, once. "make test-long" takes the
# tests that need minutes each, "make bench" measures.
#
#   PYTHON         the Python to build on, 3.11 or 3.12
#   TORCH          what pip installs as torch: a version, and options if the build needs any
#                  (TORCH="torch==2.13.0 --index-url ..." for a particular CPU or CUDA build)
#   SYSTEM_TORCH=1 use the torch that PYTHON already has, and install none
PYTHON ?= python3
TORCH ?= torch==2.13.0
SYSTEM_TORCH ?=

VENV := .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-long bench lint format clean
.DELETE_ON_ERROR:

# Another torch than the one that .venv was made with is not put under compiled code.
SAME_TORCH = [ "$$(cat $(READY))" = '$(TORCH)|$(SYSTEM_TORCH)' ] || { \
	echo '$(VENV) was set up with another TORCH or SYSTEM_TORCH ('"$$(cat $(READY))"'): repeat those, or run "make clean" first'; exit 1; }

setup: $(READY)
	@case "$(origin TORCH) $(origin SYSTEM_TORCH)" in *command*|*environment*) $(SAME_TORCH);; esac

$(READY): pyproject.toml Makefile
	@test ! -s $@ || $(SAME_TORCH)
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else f"Python is {sys.version.split()[0]}: set PYTHON to a 3.11 or 3.12")'
ifeq ($(SYSTEM_TORCH),)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
else
	$(PYTHON) -c 'import torch' || { echo "$(PYTHON) has no torch: leave out SYSTEM_TORCH=1, or set PYTHON to one that has"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# A path file shows the packages of PYTHON to .venv, also if PYTHON is a virtual environment itself.
	$(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/system-torch.pth"
	$(BIN)/python -c 'import torch'
endif
# fairseq is compiled against the torch installed above: without build isolation, which would fetch another one.
	$(BIN)/python -m pip install --quiet numpy cython setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	printf '%s' '$(TORCH)|$(SYSTEM_TORCH)' > $@

demo: setup
	PATH="$(BIN):$$PATH" bash scripts/demo.sh

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test-long: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m long

bench: setup
	$(BIN)/python -m scripts.bench

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	@for made in $(VENV)/pyvenv.cfg demo-out/settings; do \
		folder=$${made%/*}; \
		if [ -e $$made ]; then echo rm -rf $$folder; rm -rf $$folder; \
		elif [ -e $$folder ]; then echo "$$folder has no $$made, and so is not of this Makefile: it stays"; fi; \
	done
