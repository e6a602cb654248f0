# make demo           train on the embedded digits, sample, count: a few minutes on any CPU
# make shapes         structured shapes: train on the embedded furniture, sample, complete, assemble; 4 to 6 minutes
# make notebook       run_ComboStoc.ipynb, run from start to end in place; a few minutes
# make test           linters, types and the whole test suite
# make test-fast      between two edits: the linter and the tests that start no process, in less than a minute
# make docs-check     the commands of README and docs/ that need no GPU, network or hours, after make demo; 5 minutes
# make smoke          what users do, in short, with another Python: make smoke PYTHON=python3.13; a minute, in .venv-3.13
# make drill          longer checks: faults, kills, 10,000 damaged files, all grids, 3,000 steps' memory; 20 minutes
# make graded         the study of graded control on digits and on coloured digits, after make demo; 90 minutes
# make study-methods  SiT, the published method and the better draws on digits in colour, each at a learning rate of its own
# make study-completion  a part of a picture given, by graded control, replacement and RePaint; minutes, after study-methods
# make study-fashion  study-methods on Fashion-MNIST at 16 pixels; two hours
# make study-cifar10  the same on CIFAR-10, two seeds; two hours; files of one's own: make study-cifar10 CIFAR10=FOLDER
# make study          SiT and the types on digits at one learning rate, three seeds; 31 minutes
# make study-choices  the same for what the paper leaves open; 38 minutes, after make study
# make study-colour   the same for the types on three channels; 75 minutes
# make study-times    the same for ways of drawing times, and samplers at equal evaluations; 8 hours, after study-colour
# make timesteps      the picture of the types' timesteps
# make help           this list
#
# All make .venv and install what they need; PYTHON=python3.12 chooses the interpreter. Studies can be ended and continued.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO := results/ComboStoc-XS-2-demo
COLOURED := results/colour-digits
CIFAR10 ?=

.PHONY: help demo shapes notebook test test-fast docs-check smoke smoke-steps drill graded study study-choices \
	study-colour study-times study-methods study-completion study-fashion study-cifar10 timesteps
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

OLD_ENOUGH = $(PYTHON) -c 'import sys; v = sys.version_info; \
	  v >= (3, 10) or sys.exit("Python 3.10 or newer is needed, $(PYTHON) is %d.%d; try make PYTHON=python3.12" % v[:2])'
VERSION_OF = -c 'import sys; print("%d.%d" % sys.version_info[:2])'

# A Python that is asked for by name is the one that runs.
ifeq ($(origin PYTHON),command line)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(BIN)/python $(VERSION_OF)),$(shell $(PYTHON) $(VERSION_OF)))
ifeq ($(filter smoke%,$(MAKECMDGOALS)),)
$(error .venv is of Python $(shell $(BIN)/python $(VERSION_OF)), not of $(PYTHON): remove it (rm -r .venv), or leave PYTHON out)
endif
endif
endif
endif

# Modules are compiled when they are first imported: all 17,000 take a minute, and few are used.
INSTALL := --quiet --disable-pip-version-check --no-compile

$(READY): requirements.txt requirements-app.txt requirements-dev.txt constraints.txt
	@$(OLD_ENOUGH)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(INSTALL) -r requirements-dev.txt -c constraints.txt
	@touch $@

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# Training on pictures of 8 x 8, in pixel space.
PIXELS := --vae none --image-size 8 --num-classes 10 --num-workers 0 --global-batch-size 128
TINY := $(PIXELS) --lr 1e-3

# On the CPU even where there is a GPU: the model is tiny. One thread for each of the two processes.
demo: export CUDA_VISIBLE_DEVICES =
demo: export OMP_NUM_THREADS = 1
demo: $(READY)
	$(BIN)/torchrun --standalone --nproc_per_node=2 train.py --exp demo \
	  --data-path digits $(PIXELS) --model ComboStoc-XS/2 --combostoc-type UNSYNC_ALL --lr 4e-3 --warmup-steps 50 \
	  --lr-decay 200 --ema-decay 0.99 --max-steps 600 --reckpt-every 300 --sample-every 200
	OMP_NUM_THREADS=2 $(BIN)/python sample.py ODE --ckpt $(DEMO)/ckpt.pt --cfg-scale 2 --out $(DEMO)/ode.png
	OMP_NUM_THREADS=2 $(BIN)/python sample.py SDE --ckpt $(DEMO)/ckpt.pt --cfg-scale 2 --out $(DEMO)/sde.png
	$(BIN)/torchrun --standalone --nproc_per_node=2 sample_ddp.py ODE --ckpt $(DEMO)/ckpt.pt \
	  --num-fid-samples 500 --per-proc-batch-size 125 --sample-dir $(DEMO)/samples-500
	@echo
	@echo "Pictures, one column a class:  $(DEMO)/ode.png  $(DEMO)/sde.png"
	@echo "500 samples for FID:           $$(ls $(DEMO)/samples-500/*.npz)"
	@echo "To go on:  . .venv/bin/activate;  python sample.py ODE --ckpt $(DEMO)/ckpt.pt --cfg-scale 2"

# The same for structured shapes.
FURNITURE := results/Parts-XS-furniture
shapes: export CUDA_VISIBLE_DEVICES =
shapes: export OMP_NUM_THREADS = 1
shapes: $(READY)
	$(BIN)/torchrun --standalone --nproc_per_node=2 train.py --data-path shapes --model Parts-XS --num-classes 6 \
	  --num-workers 0 --global-batch-size 64 --lr 2e-3 --ema-decay 0.995 --max-steps 2500 --reckpt-every 500 \
	  --sample-every 500 --times blend --exp furniture
	OMP_NUM_THREADS=2 $(BIN)/python sample.py ODE --ckpt $(FURNITURE)/ckpt.pt --out $(FURNITURE)/sheet.png \
	  --glb $(FURNITURE)/sheet.glb
	OMP_NUM_THREADS=2 $(BIN)/python sample.py ODE --ckpt $(FURNITURE)/ckpt.pt --out $(FURNITURE)/completed.png \
	  --reference shapes:0 shapes:3 --class-labels chair bed --preserve parts:0,1,2:0.9
	OMP_NUM_THREADS=2 $(BIN)/python sample.py ODE --ckpt $(FURNITURE)/ckpt.pt --out $(FURNITURE)/assembled.png \
	  --reference shapes:0 shapes:3 --class-labels chair bed --preserve box.size:0.9,code:0.9
	$(BIN)/torchrun --standalone --nproc_per_node=2 sample_ddp.py ODE --ckpt $(FURNITURE)/ckpt.pt --balanced-labels \
	  --num-fid-samples 200 --per-proc-batch-size 100 --sample-dir $(FURNITURE)/samples
	OMP_NUM_THREADS=2 $(BIN)/python evaluate.py $(FURNITURE)/samples/*.npz shapes --points 512 --compared 200
	@echo
	@echo "Samples, completions, assemblies:  $(FURNITURE)/sheet.png  completed.png  assembled.png  sheet.glb"

# On the CPU, as whoever has no GPU sees it.
notebook: export CUDA_VISIBLE_DEVICES =
notebook: $(READY)
	$(BIN)/python -m tests.notebook

# Three workers of one thread each, for two cores: some tests wait. Rounding does not depend on the cores then. mypy runs
# beside them, and what it finds is shown after them.
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@found=$$(mktemp) && { $(BIN)/mypy > $$found 2>&1 & types=$$!; status=0; \
	  $(BIN)/python -m pytest -m "not drill" -n 3 --dist loadfile --no-loadscope-reorder || status=$$?; \
	  wait $$types || status=1; cat $$found; rm $$found; exit $$status; }

# In a copy of the working tree: nothing of the user's is overwritten.
docs-check: $(READY)
	$(BIN)/python -m tests.docs_check

# What is fast is said in tests/conftest.py.
test-fast: export OMP_NUM_THREADS = 1
test-fast: $(READY)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -m "not (slow or drill or gpu)" -n 2

# What users do with a Python: train in two processes, continue in one, sample an ODE and an SDE, evaluate.
# With what they install, in an environment of its own, which is not made anew.
smoke:
	@$(OLD_ENOUGH)
	@version=$$($(PYTHON) $(VERSION_OF)) && \
	  $(MAKE) --no-print-directory smoke-steps PYTHON=$(PYTHON) SMOKE_VENV=.venv-$$version SMOKE=results/smoke-$$version

$(SMOKE_VENV)/.ready: requirements.txt constraints.txt
	$(PYTHON) -m venv $(SMOKE_VENV)
	$(SMOKE_VENV)/bin/python -m pip install $(INSTALL) -r requirements.txt -c constraints.txt
	@touch $@

SMOKE_BIN = $(SMOKE_VENV)/bin
SMOKE_RUN = $(SMOKE)/ComboStoc-XS-4-exp_tmp
SMOKE_TRAIN = train.py --results-dir $(SMOKE) --data-path digits $(TINY) --num-workers 2 --model ComboStoc-XS/4 \
	  --log-every 20 --sample-every 40
smoke-steps: export CUDA_VISIBLE_DEVICES =
smoke-steps: export OMP_NUM_THREADS = 1
smoke-steps: $(SMOKE_VENV)/.ready
	rm -rf $(SMOKE)
	$(SMOKE_BIN)/torchrun --standalone --nproc_per_node=2 $(SMOKE_TRAIN) --max-steps 20
	$(SMOKE_BIN)/python $(SMOKE_TRAIN) --max-steps 40
	grep -q 'Continuing .* from step 20 to 40' $(SMOKE_RUN)/log.txt
	$(SMOKE_BIN)/python sample.py ODE --ckpt $(SMOKE_RUN)/ckpt.pt --out $(SMOKE)/ode.png
	$(SMOKE_BIN)/python sample_ddp.py SDE --ckpt $(SMOKE_RUN)/ckpt.pt \
	  --num-fid-samples 64 --num-sampling-steps 20 --per-proc-batch-size 32 --sample-dir $(SMOKE)/samples
	$(SMOKE_BIN)/python evaluate.py $(SMOKE)/samples/*.npz $(SMOKE)/samples/*/ --features efficientnet-lite0
	@test -s $(SMOKE_RUN)/samples/0000040.png -a -s $(SMOKE)/ode.png
	@echo "smoke: Python $$($(SMOKE_BIN)/python $(VERSION_OF)) trains, continues, samples, evaluates"

drill: export OMP_NUM_THREADS = 1
drill: export CUDA_VISIBLE_DEVICES =
drill: $(READY)
	$(BIN)/python -m tests.fault_drill
	$(BIN)/python -m tests.hostile
	$(BIN)/python -m pytest -m drill -s

# Order-only: a newer environment makes the same pictures. Renamed at the end, so that half of them is not all of them.
$(COLOURED): | $(READY)
	rm -rf $@.partial
	$(BIN)/python experiments/colour_digits.py --out $@.partial
	mv $@.partial $@

# Three seeds of two kinds of training on digits, one of each on coloured digits, and what graded control makes of them.
# What is trained is not trained again, and rows that are there are not computed again.
SIBLING := results/ComboStoc-XS-2-graded
TRAIN_SIBLING = $(BIN)/torchrun --standalone --nproc_per_node=2 train.py \
	  $(TINY) --model ComboStoc-XS/2 --ema-decay 0.995 --reckpt-every 300 --sample-every 0
graded: export CUDA_VISIBLE_DEVICES =
graded: export OMP_NUM_THREADS = 1
graded: $(READY) $(COLOURED)
	for seed in 0 1 2; do for type in all none; do $(TRAIN_SIBLING) --data-path digits --max-steps 1200 \
	    --combostoc-type UNSYNC_$$(echo $$type | tr a-z A-Z) --global-seed $$seed --exp graded-$$type-$$seed || exit 1; done; done
	for type in ALL NONE; do $(TRAIN_SIBLING) --data-path $(COLOURED) --max-steps 2400 \
	    --combostoc-type UNSYNC_$$type --exp graded-colour-$$type || exit 1; done
	$(BIN)/python experiments/graded.py --out results/graded --ckpt $(SIBLING)-all-0/ckpt.pt \
	  $(SIBLING)-all-1/ckpt.pt $(SIBLING)-all-2/ckpt.pt \
	  $(SIBLING)-none-0/ckpt.pt $(SIBLING)-none-1/ckpt.pt $(SIBLING)-none-2/ckpt.pt > results/graded.md
	$(BIN)/python experiments/graded.py --out results/graded-colour --data-path $(COLOURED) \
	  --ckpt $(SIBLING)-colour-ALL/ckpt.pt $(SIBLING)-colour-NONE/ckpt.pt > results/graded-colour.md

# One run a core. A killed study continues with the same command.
STUDY = OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= $(BIN)/python experiments/ablation.py
study: $(READY)
	@mkdir -p results
	$(STUDY) --out results/study > results/study-types.md
	@cat results/study-types.md
study-choices: $(READY)
	@mkdir -p results
	$(STUDY) --out results/study --table choices --every 500 > results/study-choices.md
	@cat results/study-choices.md
# A mirrored digit is no digit. In the rows of visuals/ half are: make study-colour NO_FLIP= continues those.
NO_FLIP := --no-flip
study-colour: $(READY) $(COLOURED)
	$(STUDY) --out results/study-colour --data-path $(COLOURED) --max-steps 3000 --every 750 \
	  -- $(TINY) --ema-decay 0.99 $(NO_FLIP) > results/study-colour-types.md
	@cat results/study-colour-types.md

# The types' rows are those of study-colour, as far as they go.
TIMES_STUDY = $(STUDY) --out results/study-times --data-path $(COLOURED) --max-steps 1500 --every 750
study-times: $(READY) $(COLOURED)
	@test -f results/study-times.csv || test ! -f results/study-colour.csv || cp results/study-colour.csv results/study-times.csv
	for table in times marginals difficulty; do \
	  $(TIMES_STUDY) --table $$table -- $(TINY) --ema-decay 0.99 $(NO_FLIP) > results/study-times-$$table.md || exit 1; done
	$(BIN)/python experiments/samplers.py --out results/study-samplers --data-path $(COLOURED) \
	  --ckpt results/ComboStoc-XS-2-study-*-difficulty-0-*/checkpoints/0001500.safetensors \
	  results/ComboStoc-XS-2-study-blend-lognormal-NONE-0-*/checkpoints/0001500.safetensors > results/study-samplers.md
	@cat results/study-times-*.md results/study-samplers.md

# Every variant at the best of these learning rates, chosen on a seed that is not reported; see docs/study.md.
TUNED = --table methods --lrs 4e-3 8e-3 1.6e-2
study-methods: $(READY) $(COLOURED)
	@mkdir -p results; test -f results/study-methods.csv || cp visuals/study-methods.csv results/
	$(STUDY) --out results/study-methods --data-path $(COLOURED) $(TUNED) --max-steps 1500 --every 500 --seeds 0 1 2 \
	  -- $(PIXELS) --ema-decay 0.99 --no-flip --warmup-steps 100 --lr-decay 400 > results/study-methods.md
	@cat results/study-methods.md
study-completion: $(READY) $(COLOURED)
	@mkdir -p results; test -f results/completion.csv || test ! -f visuals/completion.csv || cp visuals/completion.csv results/
	$(BIN)/python experiments/completion.py --out results/completion --data-path $(COLOURED) \
	  --ckpt $$(ls results/*-study-*-[012]-*-1d1f3ad3/checkpoints/0001500.safetensors | grep -v async-ALL-.-0.016) \
	  > results/completion.md
	@cat results/completion.md
study-fashion: $(READY)
	@mkdir -p results; test -f results/study-fashion-16.csv || test ! -f visuals/study-fashion-16.csv || cp visuals/study-fashion-16.csv results/
	@test -d results/fashion-mnist || $(BIN)/python experiments/fashion_mnist.py --out results/fashion-mnist
	$(STUDY) --out results/study-fashion-16 --data-path results/fashion-mnist --size XS/4 $(TUNED) --max-steps 1000 \
	  --every 500 --seeds 0 1 2 -- $(subst image-size 8,image-size 16,$(PIXELS)) --ema-decay 0.99 --no-flip \
	  --warmup-steps 100 --lr-decay 300 > results/study-fashion-16.md
	@cat results/study-fashion-16.md
results/cifar10: | $(READY)
	rm -rf $@.partial
	$(BIN)/python experiments/cifar10.py --out $@.partial $(if $(CIFAR10),--source "$(CIFAR10)")
	mv $@.partial $@
study-cifar10: $(READY) results/cifar10
	@mkdir -p results; test -f results/study-cifar10-16.csv || test ! -f visuals/study-cifar10-16.csv || cp visuals/study-cifar10-16.csv results/
	$(STUDY) --out results/study-cifar10-16 --data-path results/cifar10 --size XS/4 $(TUNED) --max-steps 1000 \
	  --every 500 --seeds 0 1 -- $(subst image-size 8,image-size 16,$(PIXELS)) --ema-decay 0.99 \
	  --warmup-steps 100 --lr-decay 300 > results/study-cifar10-16.md
	@cat results/study-cifar10-16.md

timesteps: $(READY) $(COLOURED)
	$(BIN)/python experiments/timestep_maps.py --data-path $(COLOURED) --out results/timesteps.png
