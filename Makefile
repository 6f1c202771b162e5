# make demo: watch a detector learn from a foundation model (about six minutes on two cores, after installation)
# make test: lint, types, tests
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint types clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[demo,dev]'
	touch $@

demo: $(INSTALLED)
	rm -rf runs/demo
	$(RUN) examples/train_rtdetrv4.py --output runs/demo

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(INSTALLED)
	$(RUN) -m mypy --strict vfmdistill
	$(RUN) -m mypy detectors examples benchmarks

# One thread a worker: two workers on two cores, without fighting over them
test: lint types
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m 'not slow'

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m slow

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache *.egg-info
