# A target is a `jat` command or two; `make help` lists the targets, `jat --help` (in .venv/bin) all commands.
VARIABLES := TASK OUT EPISODES WORKERS RECIPE EXPERT ARGS PYTHON
# What programs read from the environment may be given in the same way; PY is another Python for the commands.
ENVIRONMENT_VARIABLES := RAY_% JAT_% HF_% AWS_% PIP_% CUDA_% OMP_% MUJOCO_GL TMPDIR PY
# A variable that is misspelt would do silently what was not asked for, such as collecting all tasks.
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out $(VARIABLES) $(ENVIRONMENT_VARIABLES),$(GIVEN))
# For each of them the nearest that there is; without a Python nothing is nearest.
NEAREST = import difflib, sys; print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1))
meant = $(shell python3 -c '$(NEAREST)' '$(1)' $(VARIABLES) 2>/dev/null)
did_you_mean = $(if $(1), (did you mean $(1)?))
$(if $(UNKNOWN),$(error no target takes $(foreach name,$(UNKNOWN),$(name)$(call did_you_mean,$(call meant,$(name))));\
	`make help` lists the variables, and ARGS= takes any other option))
# Options of one command are none of another's.
$(if $(and $(ARGS),$(word 2,$(MAKECMDGOALS))),$(error ARGS= is for one target, and these are $(words $(MAKECMDGOALS))))
# What is repeated here, and shown in process lists, must hold no key or password: scheme://KEY:SECRET@host.
host = $(firstword $(subst /, ,$(word 2,$(subst ://, ,$(1)))))
is_secret = $(and $(findstring ://,$(1)),$(findstring @,$(1)),$(or $(findstring @,$(host)),$(findstring :,$(host))))
has_credentials = $(strip $(foreach word,$(1),$(call is_secret,$(word))))
CREDENTIALS := $(strip $(foreach name,$(VARIABLES),$(if $(call has_credentials,$(value $(name))),$(name))) \
	$(if $(call has_credentials,$(MAKECMDGOALS)),a target))
$(if $(CREDENTIALS),$(error $(CREDENTIALS) carries credentials; leave them to the environment, such as AWS_ACCESS_KEY_ID))

PYTHON ?= python3
# pip would say only that no version of a package fits.
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	{ echo "error: '$(PYTHON)' is $$($(PYTHON) -V 2>&1 | tail -1), and Python 3.11 to 3.13 is needed:" \
	"name one, as in \`make setup PYTHON=python3.11\`" >&2; exit 2; }
OUT ?= runs/default
VENV := .venv
PY := $(VENV)/bin/python
JAT = $(PY) -m dags.cli
# Airflow has 130 packages of its own and needs none of ours, so it has an environment of its own.
VENV_DAGS := .venv-dags
# The report is tested in Chromium, if there is one or if it can be installed.
BROWSER := (for name in chromium chromium-browser google-chrome; do command -v $$name && exit; done; exit 1) || \
	{ test $$(id -u) = 0 && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || \
	echo 'no Chromium: the tests of the report in a browser will be skipped; apt-get install chromium'
# Alerts are tested with Prometheus's own tool, taken out of its package: installed, that would start a server.
PROMTOOL := { command -v promtool || test -x $(VENV)/bin/promtool; } || { cd $(VENV) && apt-get download -qq prometheus && \
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=2 ./usr/bin/promtool && \
	rm prometheus_*.deb; } || echo 'no promtool: a test of the alerts will be skipped; apt-get install prometheus'
# Exports are tested with LeRobot's own loader, in a folder of its own (38 MB), which only that test puts on its path: its
# pins (torch<2.11, datasets<5, huggingface-hub<0.36) contradict ours, and its other dependencies are for robots.
LEROBOT := test -d $(VENV)/lerobot/lerobot || $(PY) -m pip install --disable-pip-version-check --progress-bar off --no-deps \
	--target $(VENV)/lerobot lerobot==0.4.4 accelerate==1.15.0 torchvision==0.28.0
# A variable that is not set is not passed, so that the recipe or the command's own default holds.
out := --out '$(OUT)'
task := $(if $(TASK),--task '$(TASK)')
episodes := $(if $(EPISODES),--episodes '$(EPISODES)')
workers := $(if $(WORKERS),--workers '$(WORKERS)')
recipe := $(if $(RECIPE),--recipe '$(RECIPE)')
expert := $(if $(EXPERT),--expert '$(EXPERT)')
# In `make experts collect EPISODES=20` the number is about collecting; measurements then keep their default.
measured := $(if $(filter collect,$(MAKECMDGOALS)),,$(episodes))

.DEFAULT_GOAL := help
.PHONY: help setup setup-experts setup-dags setup-dev demo check test chaos lint tasks experts plan collect status dataset \
	publish train evaluate film report dags bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16
	@echo; echo "Variables: $(VARIABLES)."
	@echo "ARGS='--option value' passes any option of the command that a target runs; \`jat COMMAND --help\` lists them."

setup: $(VENV)/.installed ## create .venv with everything a run needs, at pinned versions

setup-experts: $(VENV)/.installed-experts ## the same, with what training experts needs (another 0.8 GB)

setup-dags: $(VENV_DAGS)/.installed ## create .venv-dags with Airflow

setup-dev: $(VENV)/.installed-dev $(VENV_DAGS)/.installed ## the same, with what tests and lint need

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(PY) || { $(CHECK_PYTHON); $(PYTHON) -m venv $(VENV); }
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.installed-experts: $(VENV)/.installed
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[all,experts]'
	$(PY) -m pip install --disable-pip-version-check --progress-bar off --no-deps sample-factory==2.1.1
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-experts
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]'
	$(LEROBOT)
	@$(BROWSER)
	@$(PROMTOOL)
	@touch $@

$(VENV_DAGS)/.installed: pyproject.toml constraints.txt dags/constraints.txt
	@test -x $(VENV_DAGS)/bin/python || { $(CHECK_PYTHON); $(PYTHON) -m venv $(VENV_DAGS); }
	$(VENV_DAGS)/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt \
		-c dags/constraints.txt -e '.[dags]'
	@touch $@

demo: setup ## experts to report on six tasks, in about 10 minutes
	$(JAT) demo $(if $(filter-out file,$(origin OUT)),$(out)) $(workers) $(ARGS)

check: lint ## lint and the quick tests
	$(PY) -m pytest -m 'not slow and not chaos' $(ARGS)

test: setup-dev ## run all tests
	$(PY) -m pytest $(ARGS)

chaos: setup-dev ## kill, break and fill everything while collecting, about ten minutes
	$(PY) -m pytest tests/chaos -n 0 -s -m chaos $(ARGS)

lint: setup-dev ## ruff, mypy, import contracts, the size of the project
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) -m tests.house

tasks: setup ## print the task table (TASK=)
	@$(JAT) tasks $(task) $(ARGS)

experts: setup-experts ## find, train or load (EXPERT=) the experts of TASK= and measure them
	$(JAT) experts $(out) $(recipe) $(or $(task),$(if $(filter released,$(EXPERT)),--task '*')) $(expert) $(measured) \
		$(workers) $(ARGS)

plan: setup ## what collecting RECIPE= (laptop or jat), TASK=, EPISODES= takes on WORKERS=
	@$(JAT) plan $(out) $(recipe) $(task) $(episodes) $(workers) $(ARGS)

collect: setup ## collect EPISODES= per task of TASK= into shards (EXPERT=)
	$(JAT) collect $(out) $(recipe) $(task) $(expert) $(episodes) $(workers) $(ARGS)

status: setup ## how far every stage in OUT is, and its collection: done, running, rejected, episodes/s, MB, time left
	@$(JAT) status $(out) $(ARGS)

dataset: setup ## build OUT/dataset from the shards, collected and imported
	$(JAT) dataset $(out) $(task) $(ARGS)

publish: setup ## publish OUT/dataset (ARGS='--to owner/name', s3://... or ./folder)
	@$(JAT) publish $(out) $(ARGS)

train: setup ## train one agent on OUT/dataset (RECIPE=s, m, l, jat, jat-small or demo)
	$(JAT) train $(out) $(recipe) $(task) $(workers) $(ARGS)

evaluate: setup ## play unseen seeds with the trained agent, or with ARGS='--checkpoint owner/name'
	$(JAT) evaluate $(out) $(recipe) $(task) $(episodes) $(workers) $(ARGS)

film: setup ## film the experts of TASK= on the seeds that the agent was filmed on
	$(JAT) film $(out) $(task) $(workers) $(ARGS)

report: film ## write OUT/report/index.html, with agent and expert side by side
	$(JAT) report $(out) $(ARGS)

dags: setup-experts setup-dags ## Airflow with a DAG per stage, for one person on this machine
	JAT_PYTHON="$${JAT_PYTHON:-$(CURDIR)/$(PY)}" $(VENV_DAGS)/bin/python -m dags.cli dags $(out) $(ARGS)

bench: setup ## measure how fast experts and networks act on this machine; more in tests/benchmarks
	$(PY) -m tests.benchmarks.experts $(out)
	$(PY) -m tests.benchmarks.agent $(out) $(recipe) $(ARGS)

clean: ## remove the virtual environment and caches; outputs in runs/ stay
	rm -rf $(VENV) $(VENV_DAGS) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
