# `make` or `make help` lists the targets. Settings of `make full` are passed as RAW=… ROOT=… WEIGHTS=… and so on.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
EXTRAS := .venv/extras
NOTEBOOKS := 01-preprocessing.ipynb 02-CNN-modeltraining.ipynb 03-transfer-learning.ipynb
NBVAL := --nbval-lax --nbval-cell-timeout=1200
WORKERS ?= 2
export TF_CPP_MIN_LOG_LEVEL ?= 2

# Each setting that was given to make goes to the notebooks as ANIMALS10_<name>.
SETTINGS := ROOT RAW IMAGE_SIZE WEIGHTS ONLY MAX_EPOCHS FORCE SEED SPLIT STORE VIEWS DETERMINISTIC TENSORBOARD
ENVIRONMENT = $(foreach name,$(SETTINGS),$(if $($(name)),ANIMALS10_$(name)='$($(name))'))

.DEFAULT_GOAL := help
.PHONY: help run full data rebuild test soak lint notebooks sample readme report lock clean clean-cache bench verify efficiency extras classify demo recipes export

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## run the three notebooks on the shipped sample, in build/sample, and print the results
	@ANIMALS10_PROFILE=sample $(ENVIRONMENT) $(BIN)/python scripts/run_notebooks.py

full: $(READY) ## run them on your photographs: RAW= ROOT= WEIGHTS= ONLY= … (see Settings in README)
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/run_notebooks.py

data: $(READY) ## download Animals-10 into data/raw-img
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/download.py

rebuild: $(READY) ## write results.csv anew from the run.json of all finished runs; ROOT= names the workspace
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/rebuild_results.py

test: export CUDA_VISIBLE_DEVICES := -1
test: $(READY) ## test the module, and the notebooks against their stored outputs (nbval), in a temporary workspace
	@workspace=$$(mktemp -d) && trap 'rm -rf "$$workspace"' EXIT && \
		export ANIMALS10_PROFILE=sample ANIMALS10_ROOT=$$workspace && \
		$(BIN)/python -m pytest $(NBVAL) $(firstword $(NOTEBOOKS)) && \
		$(BIN)/python -m pytest $(NBVAL) -n $(WORKERS) --dist loadscope $(wordlist 2,3,$(NOTEBOOKS)) tests

soak: $(READY) ## try thousands of bad files, rows appended all at once, and kills (takes minutes)
	@CUDA_VISIBLE_DEVICES=-1 $(BIN)/python scripts/soak.py

lint: $(READY) ## check style of module, scripts, tests and notebooks
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

notebooks: $(READY) ## run the notebooks on the sample and store their outputs in the repository
	@rm -rf build/notebooks
	@ANIMALS10_PROFILE=sample ANIMALS10_ROOT=build/notebooks $(BIN)/python scripts/run_notebooks.py --store

readme: $(READY) ## write picture and table of README from results.csv and data/published-results.csv
	@$(BIN)/python scripts/readme_table.py --write

report: $(READY) ## write build/report/report.html of all stored runs: ROOT=, and PICTURES=1 to embed mistaken pictures
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/report.py $(if $(PICTURES),--pictures)

efficiency: $(READY) ## measure size, work and prediction time of all stored runs, with nothing else running: ROOT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/measure_efficiency.py

classify: $(READY) ## say what MODEL= sees in IMAGES="file folder '*.png'"; CSV= and JSON= write it down; ROOT= finds models
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/classify.py $(if $(CSV),--csv '$(CSV)') \
		$(if $(JSON),--json '$(JSON)') $(if $(TOP),--top $(TOP)) '$(MODEL)' $(IMAGES)

demo: $(EXTRAS) ## serve a page on this machine to try the models of ROOT= in a browser: PORT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/demo.py $(if $(PORT),--port $(PORT))

recipes: $(READY) ## compare training recipes over folds of your photographs (takes an hour and more): RAW= WEIGHTS= ROOT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/compare_recipes.py $(RECIPES)

verify: $(READY) ## check that stored models and predictions are what results.csv says: ROOT= RAW= RUNS="id …"
	@$(ENVIRONMENT) $(BIN)/python scripts/verify.py $(RUNS)

bench: $(READY) ## time the plain way and ours side by side on synthetic photographs: BENCH="--photographs 1000"
	@$(BIN)/python scripts/bench.py $(BENCH)

sample: $(READY) ## draw the sample pictures again (needs the font Noto Color Emoji)
	@$(BIN)/python scripts/draw_sample.py

export: $(EXTRAS) ## export a model, checked and timed: MODEL=<model_id, run or .keras file> FORMAT=litert,litert8,onnx ROOT=
	@ANIMALS10_PROFILE=full $(ENVIRONMENT) $(BIN)/python scripts/export.py $(if $(FORMAT),--format '$(FORMAT)') '$(MODEL)'

extras: $(EXTRAS) ## install what make demo, make export and TensorBoard need beyond the rest

lock: $(READY) ## pin anew what requirements.txt and requirements-extras.txt need in turn (needs uv)
	@grep -hv '^-c' requirements.txt requirements-extras.txt | uv pip compile --universal --python-version 3.11 --quiet \
		--no-header --no-annotate --no-emit-index-url - -o requirements.lock

clean-cache: ## delete the stored activations of a workspace: ROOT=
	@rm -rf "$(or $(ROOT),.)/data/activations"

clean: ## delete build/ and caches; data, models, results and .venv stay
	@rm -rf build .hypothesis .pytest_cache .ruff_cache __pycache__ */__pycache__ .ipynb_checkpoints

$(READY): requirements.txt requirements.lock
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
