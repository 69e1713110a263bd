# Creates .venv from a hashed lock and calls the ordinary tools. Paths are relative: the checkout may have blanks in its path.
PYTHON ?= $(shell sh scripts/doctor.sh --python)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INVENTORY ?= inventory
ARGS ?=
PLAY = ansible-playbook -i $(INVENTORY) $(ARGS)
.DEFAULT_GOAL := help
.PHONY: help doctor setup setup-dev train plan status stop test lint unit e2e sanity soak bench lock clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

doctor: ## name what this machine lacks
	@sh scripts/doctor.sh

setup: doctor .venv/controller.stamp
setup-dev: doctor .venv/dev.stamp

.venv/controller.stamp: requirements/controller.txt
	test -x .venv/bin/python || "$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/controller.txt
	@touch $@

.venv/dev.stamp: requirements/dev.txt .venv/controller.stamp
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

train: setup ## set up, then the run that group_vars describe (the demo)
	$(PLAY) train.yml

plan: setup ## what an apply would run, and where
	$(PLAY) llmops.finetune.plan

status: setup ## what the runs are
	$(PLAY) llmops.finetune.status

stop: setup ## end what runs
	$(PLAY) llmops.finetune.stop

test: setup-dev lint ## set up, then lint, sanity and all tests
	.venv/bin/python -m pytest tests/unit tests/sanity tests/e2e --durations=10

lint: setup-dev ## ansible-lint, yamllint, ruff, mypy
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy -p ansible_collections.llmops.finetune.plugins
	.venv/bin/python -m mypy tests
	.venv/bin/python -m yamllint --strict .
	ANSIBLE_COLLECTIONS_PATH="$(CURDIR)/collections" .venv/bin/python -m ansiblelint --offline

unit: setup-dev ## the tables of the decisions, seconds
	.venv/bin/python -m pytest tests/unit

e2e: setup-dev ## the playbooks through ansible-runner, with real training
	.venv/bin/python -m pytest tests/e2e --durations=10

sanity: setup-dev ## ansible-test sanity on a copy of the tree
	.venv/bin/python -m pytest tests/sanity

soak: setup-dev ## long fault campaigns; report in docs/soak.md
	.venv/bin/python -m tests.soak

bench: setup-dev ## ratios, side by side; report in docs/bench.md
	.venv/bin/python -m tests.bench

lock: setup ## requirements/*.txt from requirements/*.in
	sh scripts/lock.sh

clean: ## remove .venv and caches; runs and environments stay under train_root
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .ansible
