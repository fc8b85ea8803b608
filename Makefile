# Two commands matter: `make report` and `make test`. Both make .venv first if it is not there.
EXPERIMENT ?= tiny
# PYTHON=... uses an environment of your own (conda, for instance) instead of .venv
PYTHON ?= .venv/bin/python
BOOTSTRAP ?= python3
ENVIRONMENT := $(if $(filter .venv/bin/python,$(PYTHON)),.venv/.installed)
# an experiment of a study goes through the study's own driver
COLQ := $(PYTHON) -m $(if $(wildcard studies/fp8_serving/$(EXPERIMENT).yaml),studies.fp8_serving,colq_utils)
# What is installed uncompiled is compiled at its first import, and kept: each of the many fresh processes starts in half the time
ifneq ($(ENVIRONMENT),)
export PYTHONDONTWRITEBYTECODE :=
endif

.DEFAULT_GOAL := help
.PHONY: help report inspect calibrate quantize benchmark evaluate summary plan study interop published rehearsal readme html lab test lint vllm-check clean clean-checkpoints

##@ Run
report: $(ENVIRONMENT) ## all six notebooks, skipping what is fresh: reports, figures, executed notebooks
	$(COLQ) run $(EXPERIMENT)

inspect: $(ENVIRONMENT) ## 01: architecture and bytes, from headers alone
	$(COLQ) run $(EXPERIMENT) --stage inspect

calibrate: $(ENVIRONMENT) ## 02: pack the calibration sets
	$(COLQ) run $(EXPERIMENT) --stage calibrate

quantize: $(ENVIRONMENT) ## 03: make the quantized checkpoints and compare them with the base
	$(COLQ) run $(EXPERIMENT) --stage quantize

benchmark: $(ENVIRONMENT) ## 04: memory, latency, throughput
	$(COLQ) run $(EXPERIMENT) --stage benchmark

evaluate: $(ENVIRONMENT) ## 05: NDCG@5 per task, language, variant and query
	$(COLQ) run $(EXPERIMENT) --stage evaluate

summary: $(ENVIRONMENT) ## 06: reports and figures, from the results alone
	$(COLQ) run $(EXPERIMENT) --stage report

study: $(ENVIRONMENT) ## report and figures of the controlled study, from its committed results
	$(PYTHON) -m studies.seqlen.report seqlen

interop: $(ENVIRONMENT) ## base and exports opened by transformers, sentence-transformers, mteb, colpali-engine, vLLM
	$(PYTHON) -m studies.interop $(EXPERIMENT)

rehearsal: $(ENVIRONMENT) ## a published experiment on a CPU, against a stand-in hub: make rehearsal EXPERIMENT=tomoro-4b
	$(PYTHON) -m studies.rehearsal $(EXPERIMENT)

published: $(ENVIRONMENT) ## the published reports again, from their transcribed tables
	$(PYTHON) -m studies.published.report

##@ Look
help: ## show these targets
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-17s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "EXPERIMENT=name picks a file of experiments/ (default $(EXPERIMENT)):" $(basename $(notdir $(wildcard experiments/*.yaml)))
	@echo "or one of a study:" $(basename $(notdir $(wildcard studies/fp8_serving/*.yaml)))

plan: $(ENVIRONMENT) ## what an experiment would run, download and occupy; runs nothing
	$(COLQ) plan $(EXPERIMENT)

html: $(ENVIRONMENT) ## all reports and executed notebooks as web pages, with one index: results/html/index.html
	$(COLQ) render

lab: $(ENVIRONMENT) ## JupyterLab on the notebooks
	$(PYTHON) -m jupyterlab --notebook-dir=notebooks

##@ Develop
test: $(ENVIRONMENT) ## the test suite
	$(PYTHON) -m pytest

lint: $(ENVIRONMENT) ## style, common mistakes, and which part may import which
	$(PYTHON) -m ruff check colq_utils studies tests notebooks
	$(dir $(PYTHON))lint-imports

readme: $(ENVIRONMENT) ## the tables of the results into README.md
	$(COLQ) readme tiny
	$(PYTHON) -m studies.h200.report

vllm-check: $(ENVIRONMENT) ## exported FP8 checkpoints through a real vLLM server: VLLM=/its/environment/bin
	@test -n "$(VLLM)" || { echo "error: name the bin folder of an environment with vLLM: make vllm-check VLLM=/path/to/bin" >&2; exit 2; }
	PATH="$(VLLM):$$PATH" $(PYTHON) -m studies.fp8_serving.vllm_check nutrition-fp8 -- --enforce-eager

clean: ## remove .venv and caches of tools; keeps checkpoints, results and figures
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "kept: results/, figures/ and build/ (checkpoints and what is fresh; make clean-checkpoints removes one experiment's)"

clean-checkpoints: $(ENVIRONMENT) ## remove an experiment's folder in build/, after asking; it can take hours to make again
	$(COLQ) clean $(EXPERIMENT)

.venv/.installed: pyproject.toml requirements.lock
	@echo "setting up .venv (a few minutes the first time)"
	$(BOOTSTRAP) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one with BOOTSTRAP=python3.12")'
	$(BOOTSTRAP) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c requirements.lock -e '.[test,studies,fp8]'
	@touch $@
