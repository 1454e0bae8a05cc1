# A target is a `jat` command or two (`jat --help`); `make help` lists them, with the variables each takes.
VARIABLES := TASK OUT EPISODES WORKERS RECIPE EXPERT RETRAIN BY_TASK NOISE ALLOW_WEAK SOURCE ENVIRONMENT SEED DATASET \
	ACTIONS FPS MIX CORPORA TRACK KEEP COMPILE SHARD SWEEP SECONDS_EACH SEEDS CHECKPOINT CHECKPOINTS NAME REPLACE PROMPT \
	IMAGE TO TAG BRANCH PUBLIC DRY_RUN PORT QUEUE STEPS SECONDS FROM PYTHON
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
	`make help` lists the variables))
# What is repeated here, and shown in process lists, must hold no key or password: scheme://KEY:SECRET@host.
host = $(firstword $(subst /, ,$(word 2,$(subst ://, ,$(1)))))
has_credentials = $(and $(findstring ://,$(1)),$(findstring @,$(1)),$(or $(findstring @,$(call host,$(1))),$(findstring :,$(call host,$(1)))))
CREDENTIALS := $(strip $(foreach name,$(VARIABLES),$(if $(call has_credentials,$(value $(name))),$(name))) \
	$(if $(strip $(foreach goal,$(MAKECMDGOALS),$(call has_credentials,$(goal)))),a target))
$(if $(CREDENTIALS),$(error $(CREDENTIALS) carries credentials; leave them to the environment, such as AWS_ACCESS_KEY_ID))
IGNORED := $(if $(SWEEP),$(filter CORPORA TRACK KEEP COMPILE SHARD STEPS SECONDS FROM,$(GIVEN)))
$(if $(IGNORED),$(error SWEEP= trains without $(IGNORED); leave it out, or use `make train` without SWEEP=))

PYTHON ?= python3
# pip would say only that no version of a package fits.
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	{ echo "error: '$(PYTHON)' is $$($(PYTHON) -V 2>&1 | tail -1), and Python 3.11 to 3.13 is needed:" \
	"name one, as in \`make setup PYTHON=python3.11\`" >&2; exit 2; }
OUT ?= runs/default
VENV := .venv
PY := $(VENV)/bin/python
JAT = $(PY) -m dags.cli
BENCH = $(PY) -m tests.benchmarks
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
option = $(if $($(2)),--$(1) '$($(2))')
TASKS := $(call option,task,TASK)
EXPERTS := $(call option,expert,EXPERT)
# In `make experts collect EPISODES=20` the number is about collecting; measurements then keep their default.
MEASURED := $(if $(filter collect,$(MAKECMDGOALS)),,$(call option,episodes,EPISODES))
STUDY = --out '$(OUT)' $(TASKS) $(call option,training,RECIPE) $(call option,seconds,SECONDS_EACH) \
	$(call option,seeds,SEEDS) $(call option,workers,WORKERS)
STAGE := --out '$(OUT)' $(call option,recipe,RECIPE)

.DEFAULT_GOAL := help
.PHONY: help setup setup-experts setup-dags setup-dev demo check test chaos lint tasks experts experts-report plan collect \
	corpora rates status import replay video dataset validate publish train ablations evaluate compare play publish-agent \
	generate film report experts-queue dags bench bench-train bench-eval bench-collect bench-parquet clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

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
	$(JAT) demo $(if $(filter-out file,$(origin OUT)),--out '$(OUT)') $(call option,workers,WORKERS)

check: lint ## lint and the quick tests
	$(PY) -m pytest -m 'not slow and not chaos'

test: setup-dev ## run all tests
	$(PY) -m pytest

chaos: setup-dev ## kill, break and fill everything while collecting (SEED=), about ten minutes
	$(PY) -m pytest tests/chaos -n 0 -s -m chaos $(if $(SEED),--chaos-seed $(SEED))

lint: setup-dev ## ruff, mypy, import contracts, the size of the project
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) -m tests.house

tasks: setup ## print the task table (TASK=)
	@$(JAT) tasks $(TASKS)

experts: setup-experts ## find, train or load (EXPERT=, RETRAIN=1) the experts of TASK= and measure them
	$(JAT) experts $(STAGE) $(or $(TASKS),$(if $(filter released,$(EXPERT)),--task '*')) $(EXPERTS) \
		$(if $(RETRAIN),--retrain) $(MEASURED) $(call option,workers,WORKERS)

experts-queue: setup-experts ## train the experts of the list QUEUE= (a TOML file; else the last list), for days if need be
	$(JAT) experts-queue --out '$(OUT)' $(call option,queue,QUEUE) $(call option,workers,WORKERS)

experts-report: setup ## table and plots of the experts of TASK=, to OUT/experts/report/
	$(JAT) experts-report --out '$(OUT)' $(TASKS)

plan: setup ## what collecting RECIPE= (laptop or jat), TASK=, EPISODES= takes on WORKERS= (BY_TASK=1)
	@$(JAT) plan --out '$(OUT)' $(call option,recipe,RECIPE) $(TASKS) $(call option,episodes,EPISODES) \
		$(call option,workers,WORKERS) $(if $(BY_TASK),--by-task)

rates: setup ## measure what the collection in OUT has cost, to OUT/rates.json, for `make plan`
	$(JAT) rates --out '$(OUT)'

collect: setup ## collect EPISODES= per task of TASK= into shards (EXPERT=, NOISE=, ALLOW_WEAK=1)
	$(JAT) collect $(STAGE) $(TASKS) $(EXPERTS) $(if $(ALLOW_WEAK),--allow-weak) \
		$(call option,noise,NOISE) $(call option,episodes,EPISODES) $(call option,workers,WORKERS)

corpora: setup ## collect EPISODES= documents of TASK= (wikipedia, oscar, ok-vqa, conceptual-captions; SOURCE=) into shards
	$(JAT) corpora $(STAGE) $(TASKS) $(call option,episodes,EPISODES) $(call option,source,SOURCE) \
		$(call option,workers,WORKERS)

status: setup ## how far every stage in OUT is, and its collection: done, running, rejected, episodes/s, MB, time left
	@$(JAT) status --out '$(OUT)'

import: setup ## import SOURCE= (a folder, owner/name of the Hub, or minari:NAME) for TASK= (EPISODES=, ENVIRONMENT=)
	$(JAT) dataset import --out '$(OUT)' $(TASKS) $(call option,source,SOURCE) \
		$(call option,episodes,EPISODES) $(call option,environment,ENVIRONMENT) $(call option,workers,WORKERS)

replay: setup ## play SEED= of TASK= again and compare with what is stored (ACTIONS=1: the stored actions)
	$(JAT) dataset replay --out '$(OUT)' $(TASKS) $(call option,seed,SEED) $(call option,dataset,DATASET) \
		$(if $(ACTIONS),--actions)

video: setup ## render SEED= of TASK= to mp4 (FPS=, TO=)
	$(JAT) dataset video --out '$(OUT)' $(TASKS) $(call option,seed,SEED) $(call option,dataset,DATASET) \
		$(call option,fps,FPS) $(call option,to,TO)

dataset: setup ## build OUT/dataset from the shards, collected and imported (MIX=1: of different environments, too)
	$(JAT) dataset --out '$(OUT)' $(TASKS) $(if $(MIX),--mix)

validate: setup ## check DATASET= (OUT/dataset) whole, ours or another in its columns, and list all problems
	@$(JAT) dataset validate --dataset '$(or $(DATASET),$(OUT)/dataset)' $(TASKS)

bench-parquet: setup ## measure the Parquet layout on the shards in OUT: size, writing and reading
	$(BENCH).parquet --out '$(OUT)' $(TASKS)

publish: setup ## publish OUT/dataset to TO=owner/name, s3://... or ./folder (TAG=, BRANCH=, PUBLIC=1, DRY_RUN=1)
	@$(JAT) publish --out '$(OUT)' $(call option,to,TO) $(call option,tag,TAG) \
		$(call option,branch,BRANCH) $(if $(PUBLIC),--public) $(if $(DRY_RUN),--dry-run)

train: setup ## train one agent on OUT/dataset (RECIPE=s, m, l, jat, jat-small or demo) for STEPS= or SECONDS= (FROM= a checkpoint), or SWEEP=kappa
	$(if $(SWEEP),$(BENCH).sweep --sweep '$(SWEEP)' $(STUDY),$(JAT) train $(STAGE) $(TASKS) \
		$(call option,steps,STEPS) $(call option,seconds,SECONDS) $(call option,from,FROM) \
		$(call option,corpora,CORPORA) $(call option,workers,WORKERS) $(call option,track,TRACK) \
		$(call option,keep-checkpoints,KEEP) $(if $(COMPILE),--compile) $(if $(SHARD),--shard))

ablations: setup ## compare the choices of RECIPE=base one by one (SECONDS_EACH=, SEEDS=), into docs/ablations.md
	$(BENCH).ablations $(STUDY)

evaluate: setup ## play unseen seeds with the trained agent, with CHECKPOINT= (NAME= to keep both, REPLACE=1) or CHECKPOINTS=all
	$(JAT) $(if $(CHECKPOINTS),agent curve,evaluate) $(STAGE) $(TASKS) $(if $(REPLACE),--replace) \
		$(call option,checkpoints,CHECKPOINTS) $(call option,checkpoint,CHECKPOINT) $(call option,name,NAME) \
		$(call option,episodes,EPISODES) $(call option,workers,WORKERS)

compare: setup ## how likely the evaluation in OUT beats the one kept as NAME=
	@$(JAT) agent compare --out '$(OUT)' $(call option,name,NAME)

play: setup ## show the agent in TASK= from SEED= on, step by step, with CHECKPOINT= or the trained one (EPISODES=, TO=file.mp4)
	@$(JAT) agent play --out '$(OUT)' $(TASKS) $(call option,checkpoint,CHECKPOINT) $(call option,seed,SEED) \
		$(call option,episodes,EPISODES) $(call option,to,TO)

publish-agent: setup ## publish the trained network to TO=owner/name, s3://... or ./folder (TAG=, BRANCH=, PUBLIC=1, DRY_RUN=1)
	@$(JAT) agent publish --out '$(OUT)' $(call option,checkpoint,CHECKPOINT) $(call option,to,TO) \
		$(call option,tag,TAG) $(call option,branch,BRANCH) $(if $(PUBLIC),--public) $(if $(DRY_RUN),--dry-run)

generate: setup ## go on with PROMPT=, about a picture (IMAGE=), with CHECKPOINT= (a folder or a repository of the Hub)
	@$(JAT) agent generate $(call option,checkpoint,CHECKPOINT) $(call option,prompt,PROMPT) \
		$(call option,image,IMAGE)

film: setup ## film the experts of TASK= on the seeds that the agent was filmed on
	$(JAT) film --out '$(OUT)' $(TASKS) $(call option,name,NAME) $(call option,workers,WORKERS)

report: film ## write OUT/report/index.html, with agent and expert side by side (NAME=)
	$(JAT) report --out '$(OUT)' $(call option,name,NAME)

dags: setup-experts setup-dags ## Airflow with a DAG per stage, for one person on this machine (PORT=)
	JAT_PYTHON="$${JAT_PYTHON:-$(CURDIR)/$(PY)}" $(VENV_DAGS)/bin/python -m dags.cli dags --out '$(OUT)' \
		$(call option,port,PORT)

bench: setup ## measure how fast experts and networks act on this machine
	$(BENCH).experts --out '$(OUT)'
	$(BENCH).agent $(STAGE)

bench-train: setup ## measure loading and training on OUT/dataset beside JAT's way of both, in turns
	$(BENCH).train --out '$(OUT)' $(TASKS)

bench-eval: setup ## measure evaluation beside JAT's way of it (TASK=), tasks in one lockstep beside one by one, and long episodes
	$(BENCH).evaluate $(TASKS)

bench-collect: setup-experts ## measure collection on this machine, beside the plain way and over long runs, in 20 min
	$(BENCH).collect $(TASKS)
	$(BENCH).soak

clean: ## remove the virtual environment and caches; outputs in runs/ stay
	rm -rf $(VENV) $(VENV_DAGS) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
