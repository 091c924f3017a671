# `make` or `make help` lists the targets. docs/usage.md describes the settings: RAW=… ROOT=… WEIGHTS=… and so on.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
EXTRAS := .venv/extras
FIRST := tests/notebooks/01-preprocessing.ipynb
NBVAL := --nbval-lax --nbval-cell-timeout=1200
WORKERS ?= 2
export TF_CPP_MIN_LOG_LEVEL ?= 2

# Each setting that is given to make reaches notebooks and scripts as ANIMALS10_<name>.
SETTINGS := ROOT RAW TABLE_COLUMNS IMAGE_SIZE WEIGHTS ONLY MAX_EPOCHS FORCE SEED SPLIT FEATURE_CACHE VIEWS DETERMINISTIC TENSORBOARD PUBLISH
ENVIRONMENT = $(foreach name,$(SETTINGS),$(if $(value $(name)),ANIMALS10_$(name)=$(call quote,$(name))))
# The value of a variable as one word of the shell, whatever it holds: apostrophes, dollars, blanks. And an option with it.
quote = '$(subst ','\'',$(value $(1)))'
option = $(if $(value $(2)),$(1) $(call quote,$(2)))

# Notebook 01 makes the processed images that all the others read, so it runs first. Kernels start in tests/notebooks.
RUN_TESTS = workspace=$$(mktemp -d) && trap 'rm -rf "$$workspace"' EXIT && \
	export ANIMALS10_PROFILE=sample ANIMALS10_ROOT=$$workspace PYTHONPATH=$(CURDIR) && \
	$(BIN)/python -m pytest $(NBVAL) $(FIRST) && \
	$(BIN)/python -m pytest $(NBVAL) -n $(WORKERS) --dist loadscope --no-loadscope-reorder tests --ignore=$(FIRST)

.DEFAULT_GOAL := help
.PHONY: help run quick full data rebuild test test-all stress lint notebooks sample-notebooks sample readme report site lock \
	clean clean-cache bench verify efficiency extras classify demo recipes export audit leakage missing adopt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## run the three notebooks on the sample, in build/sample, and print the results
	@ANIMALS10_PROFILE=sample $(ENVIRONMENT) $(BIN)/python scripts/run_notebooks.py

full: $(READY) ## run the three notebooks on your images: RAW= ROOT= WEIGHTS= ONLY= … (settings: docs/usage.md)
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/run_notebooks.py

quick: $(READY) ## a first result in minutes: notebooks 01 and 03, one linear probe on your images: RAW= ROOT= WEIGHTS=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) ANIMALS10_ONLY=mobnet2_linear_probe $(BIN)/python scripts/run_notebooks.py \
		--notebooks 01-preprocessing.ipynb 03-transfer-learning.ipynb

data: $(READY) ## download Animals-10 into data/raw-img
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/download.py

rebuild: $(READY) ## restore results.csv from the run.json of all finished runs: ROOT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/rebuild_results.py

test: export CUDA_VISIBLE_DEVICES := -1
test: $(READY) ## run the fast tests, and compare the notebooks on the sample with tests/notebooks (nbval)
	@$(RUN_TESTS) -m "not slow"

test-all: export CUDA_VISIBLE_DEVICES := -1
test-all: $(READY) ## run all tests, including the slow ones (up to an hour)
	@$(RUN_TESTS)

stress: $(READY) ## stress test: thousands of bad files, concurrent writers of results.csv, and kills (takes minutes)
	@CUDA_VISIBLE_DEVICES=-1 $(BIN)/python scripts/stress.py

lint: $(READY) ## check the style of code and notebooks (ruff) and the types of the package (mypy)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

notebooks: $(READY) ## run the notebooks without training, and store their outputs here without photographs: RAW= ROOT= …
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/run_notebooks.py --store published

sample-notebooks: $(READY) ## run the notebooks on the sample, and store in tests/notebooks what nbval compares
	@rm -rf build/notebooks
	@ANIMALS10_PROFILE=sample ANIMALS10_ROOT=build/notebooks $(BIN)/python scripts/run_notebooks.py --store checked

readme: $(READY) ## write the figure and tables of README.md and docs/results.md from results.csv
	@$(BIN)/python scripts/readme.py

report: $(READY) ## write build/report/report.html of all stored runs: ROOT=; WITH_IMAGES=1 embeds misclassified images
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/report.py $(if $(WITH_IMAGES),--with-images)

site: $(READY) ## write build/site/: report, notebooks with their stored outputs, and documentation, as linked pages
	@$(BIN)/python scripts/website.py

efficiency: $(READY) ## measure size, latency and throughput of all stored runs, on an idle machine: ROOT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/measure_efficiency.py

classify: $(READY) ## classify IMAGES="file folder '*.png'" with MODEL=; CSV= JSON= save it, TOP= classes, ROOT= workspace
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/classify.py $(call option,--csv,CSV) \
		$(call option,--json,JSON) $(call option,--top,TOP) $(call quote,MODEL) $(IMAGES)

demo: $(EXTRAS) ## serve a page on this machine to try the models of ROOT= in a browser: PORT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/demo.py $(call option,--port,PORT)

recipes: $(READY) ## compare training configurations by cross-validation on your images (takes hours): RAW= ROOT= RECIPES=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/compare_recipes.py $(RECIPES)

audit: $(READY) ## print the near-duplicate audit of Animals-10 in a workspace: ROOT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/audit.py

leakage: $(READY) ## measure what near-duplicates in training are worth on test images: ROOT= SPLIT= EXPERIMENTS= REPETITIONS=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/leakage.py $(if $(WRITE),--write) \
		$(if $(REPETITIONS),--repetitions $(REPETITIONS)) $(EXPERIMENTS)

verify: $(READY) ## check that stored models and predictions agree with results.csv: ROOT= RAW= RUNS="id …"
	@$(ENVIRONMENT) $(BIN)/python scripts/verify.py $(RUNS)

missing: $(READY) ## train the experiments of the study that results.csv lacks: RAW= ROOT= SPLIT= ONLY=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/missing.py

adopt: $(READY) ## check runs of another workspace and add their rows and run files to this one: RUNS=folder ROOT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/adopt.py $(RUNS)

bench: $(READY) ## time training with and without the feature cache on synthetic images: BENCH="--images 1000"
	@$(BIN)/python scripts/bench.py $(BENCH)

sample: $(READY) ## draw the images of the sample again (needs the font Noto Color Emoji)
	@$(BIN)/python scripts/draw_sample.py

export: $(EXTRAS) ## export, check and time a model: MODEL=<id, run or .keras file> FORMAT=litert,litert8,onnx ROOT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/export.py $(call option,--format,FORMAT) $(call quote,MODEL)

extras: $(EXTRAS) ## install what make demo, make export, TensorBoard and HEIC images need in addition

lock: $(READY) ## update requirements.lock, the pinned dependencies of both requirements files (needs uv)
	@grep -hv '^-' requirements.txt requirements-extras.txt | uv pip compile --universal --python-version 3.11 --quiet \
		--no-header --no-annotate --no-emit-index-url - -o requirements.lock

clean-cache: ## delete the feature cache of a workspace: ROOT=
	@! test -x $(BIN)/python || ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/clean_cache.py

clean: ## delete build/ and the caches of tools; data, models, results and .venv stay
	@rm -rf build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache __pycache__ */__pycache__ .ipynb_checkpoints

$(READY): requirements.txt requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit( \
		"Python 3.11 to 3.13 is needed; %s is %d.%d. Name another: make PYTHON=python3.12 …" % (sys.executable, *v))'
	@echo "Installing into .venv (once; TensorFlow is large) …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(EXTRAS): $(READY) requirements-extras.txt
	@echo "Installing requirements-extras.txt into .venv (once) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-extras.txt
	@touch $@
