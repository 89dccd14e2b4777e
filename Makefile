# Everything here builds its own environment first (VENV, from pyproject.toml and constraints.txt).

VENV ?= .venv
ARGS ?=
# Only from make's own command line: many machines export an unrelated ENV.
ifneq ($(origin ENV),command line)
ENV := lost-sales
endif
PYTEST_ARGS ?= -n auto --dist worksteal

BIN := $(VENV)/bin
CORE := $(VENV)/.core-installed
TEST := $(VENV)/.test-installed
STUDY := $(VENV)/.study-installed
STUDIES := lost-sales control family lag race pong pong-pqn pong-dqn pong-race paac time-to-beat replay diseases healthy

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test lint bench bench-peers bench-gpu clean faults $(addprefix study-,$(STUDIES))

help: ## This list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile

train: $(CORE) ## Train on ENV (default: lost-sales), e.g. make train ENV=ALE/Pong-v5 ARGS="--total-steps 1000000".
	$(BIN)/greenroom train $(ENV) $(ARGS)

test: lint ## Everything that CI checks: lint, types, floors, tests.
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_ARGS)

lint: $(TEST) ## Style, format, types and the floors that modules may import from.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(TEST) ## Forty minutes on an idle machine: ratios of speed, into docs/performance.md.
	PYTHON=$(BIN)/python benchmarks/set_up.sh sb3
	$(BIN)/greenroom bench $(or $(ARGS),atari simulators device scale doctor busy) --output docs/results/bench
	$(BIN)/python benchmarks/page.py

bench-peers: $(TEST) ## The same beside other frameworks; installs each into an environment of its own.
	PYTHON=$(BIN)/python benchmarks/set_up.sh
	$(BIN)/greenroom bench peers $(ARGS) --output docs/results/bench
	$(BIN)/python benchmarks/page.py

bench-gpu: $(CORE) ## The suites that learn, on a GPU.
	$(BIN)/greenroom bench $(or $(ARGS),atari device scale) --device cuda --output docs/results/bench
	$(BIN)/python benchmarks/page.py

faults: $(TEST) ## Half an hour: kills, full disks, flipped bits, a soak; into docs/results/faults.
	PYTHONPATH=studies $(BIN)/python -m faults $(ARGS)

study-lost-sales: $(STUDY) ## Hours: lost sales at five lead times and penalties, five seeds each.
	$(BIN)/python studies/lost_sales.py $(ARGS)

study-time-to-beat: $(STUDY) ## Ten minutes on an idle machine: how soon `make train` beats the conventional rules.
	$(BIN)/python studies/time_to_beat.py $(ARGS)

study-control: $(STUDY) ## Hours: classic control and MuJoCo beside Stable-Baselines3, five seeds each.
	$(BIN)/python studies/control.py $(ARGS)

study-family: $(STUDY) ## Hours: every algorithm on small tasks, beside Stable-Baselines3, five seeds each.
	$(BIN)/python studies/family.py $(ARGS)

study-lag: $(STUDY) ## An hour: learning while collecting, one update behind and deep in a queue, five seeds each.
	$(BIN)/python studies/lag.py $(ARGS)

study-race: $(STUDY) ## An hour on an idle machine: who is first within 1 % of the optimum of lost sales.
	$(BIN)/python studies/lost_sales_race.py $(ARGS)

study-pong: $(STUDY) ## Hours: Pong from pixels.
	$(BIN)/python studies/atari.py pong $(ARGS)

study-pong-pqn: $(STUDY) ## Hours: Pong from pixels, on-policy values (PQN).
	$(BIN)/python studies/atari.py pong-pqn $(ARGS)

study-pong-dqn: $(STUDY) ## Hours: Pong from pixels, values from a replay (DQN).
	$(BIN)/python studies/atari.py pong-dqn $(ARGS)

study-pong-race: $(STUDY) ## Six hours on an idle machine: how soon Pong is played at 18, beside other frameworks.
	$(BIN)/python studies/pong_race.py $(ARGS)

study-replay: $(STUDY) ## A minute and 8 GB of memory: what a replay of a million Atari transitions costs.
	$(BIN)/python studies/replay.py $(ARGS)

study-healthy: $(STUDY) ## Hours: the other studies' runs again, watched, to see what the health checks find.
	$(BIN)/python studies/healthy.py $(ARGS)

study-diseases: $(STUDY) ## Half an hour: how soon health checks find injected diseases, and silence on healthy runs.
	$(BIN)/python studies/diseases.py $(ARGS)

study-paac: $(STUDY) ## Hours: the paac preset on Breakout.
	$(BIN)/python studies/atari.py paac $(ARGS)

clean: ## Remove environments, caches and build products; runs stay.
	rm -rf $(VENV) .venv-peers build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests studies benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(CORE): pyproject.toml constraints.txt
	@tools/set_up.sh $(VENV)
	@touch $@

$(TEST): pyproject.toml constraints.txt
	@tools/set_up.sh $(VENV) dev,mujoco,box2d,envpool,video
	@touch $@ $(CORE)

$(STUDY): pyproject.toml constraints.txt
	@tools/set_up.sh $(VENV) studies,mujoco,box2d,envpool
	@touch $@ $(CORE)
