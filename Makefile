# Creates .venv from the hashed locks and calls the ordinary tools. The checkout may have blanks in its path.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell sh scripts/doctor.sh --python)
endif
INVENTORY ?= inventory
ARGS ?=
GB = 1

PLAY = .venv/bin/ansible-playbook -i "$(INVENTORY)" $(ARGS)
# Two workers: most of the time a play waits for one core.
BOTH = --numprocesses=2 --dist=loadfile --no-loadscope-reorder
# They need podman, and both cores to themselves: make systemd, make cluster.
ON_HOSTS = --ignore=tests/e2e/test_systemd.py --ignore=tests/e2e/test_cuda.py --ignore-glob='tests/e2e/test_cluster*.py'
RUN = PATH="$(CURDIR)/.venv/bin:$$PATH"
INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes

# A stamp is named after the lock, the Python and the place, because an environment that was moved does not run.
digest = $(shell { pwd -P; "$(PYTHON)" -V; cat requirements/controller.txt $(1); } | sha256sum | cut -c1-12)
CONTROLLER := .venv/controller-$(call digest)
DEV := .venv/dev-$(call digest,requirements/dev.txt)
COLLECTIONS := .venv/collections-$(call digest,requirements/collections.txt requirements.yml)

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help doctor setup setup-dev collections train plan status stop test lint docs unit e2e systemd cluster cluster-up cluster-down molecule sanity soak bench bench-vram measure recipes lock clean
train test e2e systemd cluster molecule soak bench: GB = 12

help: ## this list
	@echo 'make train fine-tunes, make test tests. Also: make PYTHON=/path/to/python3.12 INVENTORY=… ARGS="-e train_wait=false" …'
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

doctor: ## name what this machine lacks
	@sh scripts/doctor.sh $(GB)

setup: $(CONTROLLER) ## .venv with Ansible
setup-dev: $(DEV) $(COLLECTIONS) ## .venv with Ansible and the tools
collections: $(COLLECTIONS) ## what fleets on EC2 and storage_mounts need, from the Python index instead of Galaxy

$(CONTROLLER): | doctor
	"$(PYTHON)" -m venv --clear .venv
	$(INSTALL) -r requirements/controller.txt
	@touch $@

$(DEV): $(CONTROLLER)
	$(INSTALL) -r requirements/dev.txt
	@rm -f .venv/dev-*
	@touch $@

$(COLLECTIONS): $(CONTROLLER)
	.venv/bin/python scripts/bundle.py
	@rm -f .venv/collections-*
	@touch $@

train: setup ## the run that group_vars describe, from nothing to a trained adapter
	$(PLAY) train.yml

plan: setup ## what an apply would run, and where
	$(PLAY) llmops.finetune.plan

recipes: setup ## what train_recipe may be: name, purpose, hardware, proved or not
	@.venv/bin/python scripts/recipes.py

status: setup ## what the runs are
	$(PLAY) llmops.finetune.status

stop: setup ## end what runs
	$(PLAY) llmops.finetune.stop

test: lint ## lint, then all tests but `systemd` and `cluster`; the last line is pytest's
	$(RUN) python -m pytest $(BOTH) tests/unit tests/sanity tests/e2e $(ON_HOSTS) --durations=25

lint: setup-dev docs ## ruff, mypy, yamllint, antsibull-docs, antsibull-changelog, ansible-lint
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy -p ansible_collections.llmops.finetune.plugins
	.venv/bin/python -m mypy tests
	.venv/bin/python -m yamllint --strict .
	$(RUN) antsibull-changelog lint
	$(RUN) ANSIBLE_COLLECTIONS_PATH="$(CURDIR)/collections" ansible-lint --offline

docs: setup-dev ## check the documentation of plugins and roles as a documentation site reads it
	$(RUN) antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck --validate-collection-refs self .

unit: setup-dev ## the decisions, without a node
	$(RUN) python -m pytest tests/unit

sanity: setup-dev ## ansible-test sanity on a copy of the tree, tests too
	$(RUN) SANITY_TESTS=1 python -m pytest tests/sanity

e2e: setup-dev ## the playbooks through ansible-runner, with real training
	$(RUN) python -m pytest $(BOTH) tests/e2e $(ON_HOSTS) --durations=25

systemd: setup-dev ## a host that boots systemd, over ssh; root and podman needed (tests/hosts/hosts.sh check)
	$(RUN) python -m pytest tests/e2e/test_systemd.py tests/e2e/test_cuda.py -rs --durations=25

cluster: setup-dev ## three hosts over ssh, and what happens when one is lost; root and podman needed
	$(RUN) python -m pytest tests/e2e/test_cluster*.py -rs --durations=25

cluster-up: setup ## start three hosts on this machine to try a cluster on; prints their inventory
	@tests/hosts/hosts.sh up 3

cluster-down: ## remove them, with their disks
	@tests/hosts/hosts.sh down

SCENARIO = local
molecule: setup-dev ## a scenario: make molecule SCENARIO=systemd ARGS="-e uv_env_index_url=…"
	$(RUN) molecule test -s $(SCENARIO) -- $(ARGS)

PART =
soak: setup-dev ## long campaigns, in docs/soak.md; make soak PART=recipes (or faults, parsers; hosts: root and podman)
	$(RUN) python -m tests.e2e.soak $(PART)

bench: setup-dev ## ratios, side by side; report in docs/bench.md; make bench PART=records
	$(RUN) PYTHONPATH=collections python -m tests.bench $(PART)

bench-vram: setup-dev ## how far estimates of memory are off; make bench-vram ARGS="--measured FILE --truth FILE --configs DIR"
	$(RUN) PYTHONPATH=collections python -m tests.bench_vram --fitcheck $(ARGS)

ENVIRONMENT = $(firstword $(wildcard $(HOME)/llmops/envs/*))
measure: ## what runs take of this machine's GPU, and tokens a second, into bench/; make measure ENVIRONMENT=… ARGS="--seconds 540"
	PYTHONPATH=collections "$(ENVIRONMENT)/bin/python" -m tests.vram.measure $(ARGS)

lock: setup ## requirements/*.txt from requirements/*.in
	$(RUN) sh scripts/lock.sh

clean: ## remove .venv and caches; runs and environments stay under train_root
	rm -rf .venv collections/ansible_collections/amazon collections/ansible_collections/ansible .cache .mypy_cache .pytest_cache .ruff_cache .ansible
