# Two commands on a fresh machine: "make demo" and "make test". Both set up .venv first, once. "make test-long" takes the
# tests that need minutes each, "make bench" measures.
#
#   PYTHON         the Python to build on, 3.10 to 3.13
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

# What stands in the way is said before anything is made.
CHECK_PYTHON = import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else \
	"Python is %s: set PYTHON to a 3.10, 3.11, 3.12 or 3.13" % sys.version.split()[0])
# fairseq has a ready-made wheel for Python 3.12 alone.
CHECK_COMPILER = [ "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')" = "(3, 12)" ] || command -v "$${CXX:-c++}" >/dev/null || \
	{ echo 'There is no C++ compiler, which fairseq needs on this Python: install g++, or set PYTHON to a 3.12'; exit 1; }

$(READY): pyproject.toml setup.py Makefile
	@test ! -s $@ || $(SAME_TORCH)
	@command -v $(firstword $(PYTHON)) >/dev/null || { echo 'There is no $(PYTHON): set PYTHON to a 3.10, 3.11, 3.12 or 3.13'; exit 1; }
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	@$(CHECK_COMPILER)
ifeq ($(SYSTEM_TORCH),)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo '1/3 $(TORCH): from PyPI this downloads a CUDA build, 2 to 3 GB'
	$(BIN)/python -m pip install $(TORCH)
else
	$(PYTHON) -c 'import torch' || { echo "$(PYTHON) has no torch: leave out SYSTEM_TORCH=1, or set PYTHON to one that has"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# A path file shows the packages of PYTHON to .venv, also if PYTHON is a virtual environment itself.
	$(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/system-torch.pth"
	$(BIN)/python -c 'import torch'
endif
# fairseq is compiled against the torch installed above: without build isolation, which would fetch another one. With
# CUDA_HOME it would compile kernels that Luna does not use, which takes an nvcc of the same version as that of torch.
	@echo '2/3 what fairseq is built with'
	$(BIN)/python -m pip install numpy cython 'setuptools>=77' wheel
	@echo '3/3 fairseq, the plugin and the tools for tests; except on Python 3.12 fairseq is compiled, which takes 3 to 10 minutes'
	@[ -z "$$CUDA_HOME" ] || echo "CUDA_HOME is $$CUDA_HOME: left out here, Luna does not use what fairseq compiles with it"
	env -u CUDA_HOME $(BIN)/python -m pip install --no-build-isolation --editable '.[dev]'
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
