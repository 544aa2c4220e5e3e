# make tour    set up an environment and run the tour       make test   set up and run the tests
# make lint | docs | bench | lock | clean                    PYTHON=...  use an interpreter that is already set up
# make exhaustive   the tests that take minutes            make figures   the worst figures of the tests of trust, for the docs
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help tour test exhaustive figures lint docs bench lock clean

VENV := .venv
ifdef PYTHON
RUN := $(PYTHON)
needs =
else
RUN := $(VENV)/bin/python
# An environment is up to date when the stamp named by its lock's hash exists; a changed lock is a new name.
needs = $(VENV)/stamps/$(1)-$(shell git hash-object requirements/$(1).txt)
endif
# how the tests are spread: neighbours together, as they share programs; JOBS= runs all in one process
JOBS := -n 2 --dist worksteal
export MPLBACKEND := Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

tour: $(call needs,examples)
	$(RUN) -m examples.tour

# Most tests run each program once or twice: without optimization they compile in half the time. These run as users do.
OPTIMIZED := tests/devices tests/first_order/test_certificates.py \
  $(patsubst %,tests/linalg/test_%.py,lmi schur) $(patsubst %,tests/stokes/test_%.py,direct solvers) \
  tests/filtering/test_particle_filter.py
QUICK := XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
test: $(call needs,test)
	$(QUICK) $(RUN) -m pytest $(JOBS) README.md jaxnm tests $(addprefix --ignore=,$(OPTIMIZED))
	$(RUN) -m pytest $(JOBS) $(filter-out tests/devices,$(OPTIMIZED))
	$(RUN) -m pytest tests/devices

TRUST := tests/contracts tests/trust
exhaustive: $(call needs,test)
	$(QUICK) $(RUN) -m pytest $(JOBS) -m exhaustive $(TRUST)
	$(RUN) -m pytest $(JOBS) -m exhaustive $(addprefix --ignore=,$(TRUST))

figures: $(call needs,test)
	$(QUICK) $(RUN) -m pytest $(JOBS) -m 'exhaustive or not exhaustive' --figures docs/trust.json $(TRUST)

lint: $(call needs,test) $(call needs,examples)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyrefly check

docs: $(call needs,docs)
	$(RUN) -m sphinx -j auto -q -W --keep-going -b html docs build/docs

# NumPy asks the system for huge pages by itself; the tunable gives them to every array of the process
bench: $(call needs,bench)
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(RUN) -m benchmarks

lock:
	$(VENV)/bin/python -m pip install --quiet uv
	for name in run test docs examples bench; do \
	  $(VENV)/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	    --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	    requirements/$$name.in -o requirements/$$name.txt || exit 1; \
	done

clean:
	rm -rf $(VENV) build

$(VENV)/bin/python:
	@set -e; found=; for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	  if command -v $$python >/dev/null 2>&1 && \
	     $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "jaxnm needs Python 3.11 to 3.14, and found none on PATH (python3 is: $$(python3 --version 2>&1))"; exit 1; fi; \
	if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then echo "$$found lacks the venv module (on Debian: apt-get install python3-venv)"; exit 1; fi; \
	echo "setting up $(VENV) with $$($$found --version)"; $$found -m venv $(VENV)

$(VENV)/stamps/%: $(VENV)/bin/python
	@name=$$(echo $* | sed 's/-[0-9a-f]*$$//'); echo "installing requirements/$$name.txt"; \
	$(VENV)/bin/python -m pip install --quiet --require-hashes -r requirements/$$name.txt
	@mkdir -p $(VENV)/stamps && touch $@
