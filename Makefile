# make help lists the targets. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
# without an NVIDIA GPU, torch's CPU wheel instead of gigabytes of CUDA
CONSTRAINTS := $(if $(shell command -v nvidia-smi),,-c constraints-cpu.txt)

.PHONY: help install demo test drill lint clean

help:            ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/:/'

$(VENV)/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]'
	@touch $@

install: $(VENV)/installed  ## make .venv

demo: install    ## phantom cohort, three phases, evaluation, report (a quarter of an hour on two CPU cores)
	$(RUN) anomaly3d.prepare
	$(RUN) anomaly3d.train
	$(RUN) anomaly3d.evaluate

test: install    ## the whole test suite
	$(RUN) pytest -n 2

drill: install   ## kill training a hundred times at random and compare with undisturbed runs
	$(RUN) experiments.reliability.kill

lint: install    ## ruff and mypy
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

clean:           ## remove .venv; data and runs stay
	rm -rf $(VENV) *.egg-info
