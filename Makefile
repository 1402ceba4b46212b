# Every target works in .venv of this checkout and sets it up first; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check
LOCKED := $(PIP) --require-hashes --no-deps
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')
PYTEST := $(PY) -m pytest
WORKERS := -n auto --maxprocesses 8 --dist worksteal
# a machine with a GPU often has a PyTorch of its own and no network, so `make gpu` takes what is there
GPU_PYTHON ?= $(if $(wildcard $(PY)),$(PY),$(PYTHON))

.DEFAULT_GOAL := help
.PHONY: solve test test-ray test-install check interpret-gate compile-gate compiled-gate gates proof roofline bench soak hostile gpu train profile native dist docs clean help

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is missing or older than Python 3.10; name another one: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv module (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@touch $@

.venv/.environment: .venv/.created $(wildcard constraints/*.txt)
	@echo "installing the pinned environment into .venv (once)"
	@$(LOCKED) -r constraints/test.txt
	@$(PIP) -r constraints/torch.txt
	@$(PY) -c 'import triton' 2>/dev/null || $(LOCKED) -r constraints/triton.txt
	@touch $@

.venv/.installed: .venv/.environment pyproject.toml setup.py $(CSRC)
	@echo "installing rtm_kernels into .venv"
	@rm -f rtm_kernels/_cpu.* rtm_kernels/_cuda*.so
	@$(PIP) --no-build-isolation --no-deps --editable .
	@ls rtm_kernels/_cpu.* >/dev/null 2>&1 || echo "note: no native CPU kernels (make native says why); PyTorch serves"
	@touch $@

solve: .venv/.installed  ## set everything up and solve the bundled example puzzles
	@$(BIN)/rtm solve

test: .venv/.installed  ## set everything up and run the tests, with a quick look at both gates
	@$(PYTEST) --ignore=tests/proof -m "not slow" $(WORKERS)

test-ray: .venv/.installed  ## install Ray into .venv (once) and run the tests that need it
	@$(PY) -c 'import ray' 2>/dev/null || $(LOCKED) -r constraints/ray.txt
	@$(PYTEST) -n 0 tests/distributed/test_ray.py

test-install: dist  ## the wheels of dist/ installed as users do: no compiler, no HOME, read-only, odd paths, other Pythons
	@$(PY) -m tests.packaging.installs dist $(ARGS)

check: .venv/.environment  ## lint, format check, types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

interpret-gate: .venv/.installed  ## every Triton kernel against its reference, in Triton's interpreter
	@CUDA_VISIBLE_DEVICES= $(PYTEST) tests/proof/test_gates.py -k interpreted $(WORKERS) -q --no-header -W ignore

compile-gate: .venv/.installed  ## every kernel and launch row compiled for sm_90 without a GPU; ARCH=all writes the table
	@$(PY) -m tests.gates.compile_gate --arch $(or $(ARCH),90)

compiled-gate: .venv/.installed  ## every kernel as compiled for sm_90 and sm_80, executed on the CPU: values, bounds, races
	@$(PY) -m tests.gates.compiled_gate $(ARGS)

gates: .venv/.installed  ## the gates and the proof under another Triton, installed beside .venv: make gates TRITON=3.9.0
	@test -n "$(TRITON)" || { echo "error: name a version: make gates TRITON=3.9.0"; exit 1; }
	@test -d .triton/$(TRITON) || $(PIP) --no-deps --target .triton/$(TRITON) triton==$(TRITON)
	@PYTHONPATH=.triton/$(TRITON) $(PY) -c 'import triton; print("Triton", triton.__version__)'
	@PYTHONPATH=.triton/$(TRITON) $(PY) -m tests.gates.compile_gate --arch $(or $(ARCH),90)
	@PYTHONPATH=.triton/$(TRITON) $(PYTEST) tests/proof $(WORKERS) -q --no-header -W ignore

proof: .venv/.installed  ## what takes longer: the gates whole, every proof that needs no GPU, slow tests; ends in one table
	@$(PYTEST) tests/proof $$(grep -rl mark.slow tests --include=test_*.py) -m slow $(WORKERS) -q --no-header -W ignore

roofline: .venv/.installed  ## what bounds each kernel of an ACT and a training step on an H200, from compiled code
	@$(PY) -m benchmarks.roofline $(ARGS)

bench: .venv/.installed  ## benchmarks of this machine within ten minutes; writes profiles/<machine>/, ends with one table
	@mkdir -p .benchmarks
	@status=0; \
	$(PY) -m benchmarks.profile > .benchmarks/profile.txt || status=$$?; \
	$(PY) -m benchmarks.energy || echo "energy: null"; \
	$(PYTEST) benchmarks -q --benchmark-quiet --benchmark-json=.benchmarks/latest.json --report || status=$$?; \
	exit $$status

soak: .venv/.installed  ## 100,000 requests to `rtm serve` on loopback; writes profiles/<machine>/soak.json
	@$(PY) -m benchmarks.soak $(ARGS)

hostile: .venv/.installed  ## 100,000 damaged inputs of every kind: model files, data, traces, arguments, HTTP
	@$(PYTEST) tests/hostile --hostile 100000 -n auto --dist worksteal $(ARGS)

gpu:  ## everything that only a GPU can show, in stages; installs nothing (make gpu GPU_PYTHON=python3)
	@$(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

train:  ## a full-size Sudoku model on a GPU, a slice of ten minutes at a time: make train DATA=data/hard
	@$(GPU_PYTHON) -m rtm_kernels.cli.main train $(or $(PRESET),sudoku-full) $(if $(DATA),data=$(DATA)) --minutes 9.5 $(ARGS)

profile: .venv/.installed  ## where the time of one ACT step goes, operator by operator
	@$(PY) -m benchmarks.profile $(ARGS)

native: .venv/.environment  ## build the C++ library, and fail where it cannot be built
	@rm -f rtm_kernels/_cpu.* rtm_kernels/_cuda*.so
	@$(PY) setup.py --quiet build_ext --inplace
	@$(PY) -c 'from rtm_kernels.recursion import library; library.loaded(); print("built", library.PATH)' 2>/dev/null || \
	  { echo "error: rtm_kernels/_cpu was not built, or does not load; the lines above say why"; exit 1; }

dist: .venv/.environment  ## source archive, wheels and their SBOMs in dist/, the same bytes from the same files
	@$(PY) -m tests.packaging.build dist
	@$(PY) -m tests.packaging.hub_kernels dist

docs: .venv/.installed  ## the documentation as a site in site/, with the browser demo; installs mkdocs into .venv (once)
	@$(PY) -c 'import material, mkdocstrings' 2>/dev/null || $(LOCKED) -r constraints/docs.txt
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "site/index.html, site/docs/demo/index.html"

clean:  ## remove what the targets built, .venv included
	rm -rf .venv .triton .arm64 build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f rtm_kernels/_cpu.* rtm_kernels/_cuda*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
