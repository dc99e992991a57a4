# The whole interface: see `make help`. Each target first makes what it needs. On a fresh machine that is an
# environment in .venv (fetches torch); inside an environment that has torch and the rest, only the build.
SHELL := /bin/bash
ifndef PYTHON
PYTHON := $(shell .ci/find-python)
endif
# A development build is for this machine's GPU; a wheel built with pip is for all of them (see setup.py).
TORCH_CUDA_ARCH_LIST ?= native
export TORCH_CUDA_ARCH_LIST

VENV := $(CURDIR)/.venv
BUILT := pairloss/_build_info.json
SWITCHES := $(PYTHON) $(TORCH_CUDA_ARCH_LIST) $(FORCE_CUDA) $(DEBUG)
CPP_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')
ifeq ($(PYTHON),$(VENV)/bin/python)
ENVIRONMENT := $(VENV)/.complete
EDITABLE := $(VENV)/.editable
endif

.PHONY: help demo tables test bench bench-compare lint sanitize build clean
help:
	@echo 'make demo      train on real images, write runs/demo/   ARGS="--data fashion-mnist"'
	@echo 'make tables    a whole table of the paper                ARGS="--table 3 --data fashion-mnist"'
	@echo 'make test      run the tests                            ARGS="-k gradcheck"'
	@echo 'make bench     speed and memory beside the alternatives, with pictures: five minutes'
	@echo 'make bench-compare  whether it became slower than in the committed record'
	@echo 'make lint      ruff, mypy, clang-format'
	@echo 'make sanitize  the CPU kernels under AddressSanitizer and UBSan'
	@echo 'make build     compile what has changed'
	@echo 'make clean     remove what was built (not .venv)'
	@echo 'They use $(PYTHON); choose another with PYTHON=...'
	@echo 'Switches of the build, FORCE_CUDA, TORCH_CUDA_ARCH_LIST, MAX_JOBS and DEBUG: see setup.py.'

demo: build
	$(PYTHON) -m models.demo $(ARGS)

tables: build
	$(PYTHON) -m models.tables $(ARGS)

test: build
	$(PYTHON) -m pytest $(ARGS)

bench: build
	$(PYTHON) -m benchmarks --plot runs/benchmarks --json runs/benchmarks/record.json $(ARGS)

bench-compare: build
	$(PYTHON) -m benchmarks.compare $(ARGS)

# pip puts the tools beside Python, which need not be on the PATH.
lint: export PATH := $(dir $(PYTHON)):$(PATH)
lint: $(ENVIRONMENT)
	ruff check .
	ruff format --check .
	mypy pairloss models benchmarks
	clang-format --dry-run -Werror $(CPP_FILES)

sanitize: $(ENVIRONMENT)
	$(PYTHON) -m tests.sanitize $(ARGS)

build: $(BUILT) $(EDITABLE)

clean:
	rm -rf build dist pairloss/*.so $(BUILT) *.egg-info

# Written last by setup.py, which compiles only what has changed.
$(BUILT): setup.py pyproject.toml $(shell find csrc -type f) | $(ENVIRONMENT)
	$(PYTHON) setup.py build_ext --inplace
	@echo '$(SWITCHES)' > build/switches

# Other switches than last time: build again.
ifneq ($(strip $(SWITCHES)),$(strip $(shell cat build/switches 2>/dev/null)))
.PHONY: $(BUILT)
endif

$(VENV)/.complete: constraints-dev.txt
	@echo 'Making the development environment in .venv; torch is some gigabytes, so this takes minutes.'
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --disable-pip-version-check -r constraints-dev.txt
	@touch $@

# So that `import pairloss` works from any folder when .venv is active.
$(VENV)/.editable: pyproject.toml | $(BUILT)
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps -e .
	@touch $@
