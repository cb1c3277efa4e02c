# `make demo` trains S2Q and QMIX and draws, `make test` checks everything; both set up .venv first.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
# What requirements-dev.txt is made of.
DEV_PARTS := $(shell sed -n 's/^-r //p' requirements-dev.txt)

.PHONY: setup football lint format test test-slow test-cluster coverage docs bench demo clean

# One stamp per set of requirements: installing again happens only after a requirements file changed.
$(VENV)/.run.stamp: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.dev.stamp: $(VENV)/.run.stamp requirements-dev.txt $(DEV_PARTS)
	$(PY) -m pip install -q -r requirements-dev.txt
	touch $@

# Google Research Football: Debian packages and five minutes of compiling, so only on demand; CI does it.
$(VENV)/.football.stamp: $(VENV)/.dev.stamp requirements-gfootball.txt install_gfootball.sh
	PYTHON=$(PY) bash install_gfootball.sh
	touch $@

$(VENV)/.docs.stamp: requirements-docs.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements-docs.txt
	touch $@

$(VENV)/.cluster.stamp: $(VENV)/.dev.stamp requirements-slurm.txt requirements-ray.txt
	$(PY) -m pip install -q -r requirements-slurm.txt -r requirements-ray.txt
	touch $@

setup: $(VENV)/.run.stamp

football: $(VENV)/.football.stamp

lint: $(VENV)/.dev.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.dev.stamp
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile

# Learning checks, and the long part of tests/faults: 60 kills, every fault in a worker process.
test-slow: $(VENV)/.dev.stamp
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist load -m "slow or long"

# Sweeps and environments on a Slurm and a Ray cluster on this machine. Root gets Slurm from Debian
# where it is missing; without it, or without root, its tests are skipped.
test-cluster: $(VENV)/.cluster.stamp
	bash tests/slurm/install.sh
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile -rs -m cluster \
		tests/slurm tests/launch tests/envs/test_ray_env.py tests/runs/test_documentation.py

# What of src/ the quick tests reach; what numba compiles counts as not reached.
coverage: $(VENV)/.dev.stamp
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --cov --cov-report=term --cov-report=xml

# The documentation site, in site/; a broken link is an error.
docs: $(VENV)/.docs.stamp
	$(PY) -m mkdocs build --strict

bench: $(VENV)/.dev.stamp
	$(PY) benchmarks/run.py

demo: $(VENV)/.run.stamp
	$(PY) -m experiments run demo

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .coverage .coverage.* coverage.xml site
