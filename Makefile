# make help lists the targets. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip install --quiet --disable-pip-version-check
# without an NVIDIA GPU, torch's CPU wheel where pip finds it: the usual one for Linux brings gigabytes of CUDA
CPU := $(if $(shell command -v nvidia-smi),,$(filter Linux,$(shell uname)))

.PHONY: help install demo test docs drill mutants lint audit sbom lock clean

help:            ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/:/'

$(VENV)/installed: pyproject.toml $(wildcard locks/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r locks/pip.txt
	$(if $(CPU),$(PIP) --require-hashes --no-deps -r locks/torch-cpu.txt 2> /dev/null || echo "pip finds no CPU wheel of torch")
	$(PIP) --require-hashes -r locks/packages.txt -c locks/torch.txt
	$(PIP) --quiet --no-deps --no-build-isolation -e .
	@touch $@

install: $(VENV)/installed  ## make .venv from locks/, every file checked by its SHA-256

DETECTOR ?= denoising
demo: install    ## phantom cohort, training, evaluation, two reports (ten minutes on two CPU cores); DETECTOR=fanogan: the paper's three phases (15 to 35 minutes)
	$(RUN) anomaly3d.prepare
	$(RUN) anomaly3d.train +experiment=demo detector=$(DETECTOR)
	$(RUN) anomaly3d.evaluate
	cohort=$$(ls -td data/raw/phantom-????????/ct | head -n 1); \
	$(RUN) anomaly3d.score run=demo "scans=[$$(ls $$cohort/normal-000[0-3].nii.gz $$cohort/*ural-000[0-3].nii.gz | paste -sd, -)]"

test: install    ## the whole test suite
	$(RUN) pytest -n 2 --dist worksteal --durations 40

docs: install    ## the documentation as a site, site/index.html; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet
	@echo "site/index.html opens in a browser"

drill: install   ## kill training a hundred times at random and compare with undisturbed runs
	$(RUN) experiments.reliability.kill

mutants: install ## put faults into the code one by one and count those that tests notice (an hour and more)
	$(RUN) experiments.reliability.mutants

lint: install    ## ruff, mypy, and make audit where its service is in reach
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	@if $(MAKE) --silent audit > .audit.log 2>&1; then tail -n 1 .audit.log; \
	elif grep -qE "requests.exceptions|Could not connect" .audit.log; then echo "audit: not done, its service is out of reach"; \
	else cat .audit.log; exit 1; fi

LOCKED := locks/packages.txt locks/torch.txt
audit: install   ## known vulnerabilities of what is locked; asks a service in the network
	$(RUN) pip_audit --vulnerability-service osv --strict --disable-pip --require-hashes $(LOCKED:%=-r %)

# in an environment of its own: with it jsonschema, and so monai, takes a second longer to import
sbom: install    ## sbom.json: all that is locked with its digests, as CycloneDX
	cat $(LOCKED) | $(VENV)/bin/uvx --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible -o sbom.json -

lock: install    ## write locks/ anew from pyproject.toml; UPGRADE=--upgrade takes the newest versions
	PATH="$(VENV)/bin:$$PATH" locks/write.sh $(UPGRADE)

clean:           ## remove .venv; data and runs stay
	rm -rf $(VENV) *.egg-info
