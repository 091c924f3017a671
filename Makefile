# A thin front of tasks.py, which does the same without make: `make TASK NAME=value …` is `python tasks.py TASK NAME=value …`.

PYTHON ?= python3
# The environment's Python where it is there: the system's may be too old by now.
FRONT = $(or $(shell .venv/bin/python -c 'print(".venv/bin/python")' 2>/dev/null),$(PYTHON)) tasks.py

# Each variable that is given to make, as one word of the shell whatever it holds: apostrophes, dollars, blanks.
GIVEN = $(foreach name,$(filter-out PYTHON,$(.VARIABLES)),$(if $(findstring command line,$(origin $(name))),$(call given,$(name))))
given = $(1)='$(subst ','\'',$(value $(1)))'
DRY_RUN = $(if $(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS)))),--dry-run)

TASKS := run lab data quick full report efficiency audit leakage classify demo export labels configurations install extras \
	cluster lock verify rebuild missing adopt clean clean-cache test test-all stress lint bench notebooks sample-notebooks readme \
	sample site

.PHONY: help $(TASKS) .venv/ready
help:
	@$(FRONT) help

# The plus sign: also with make --dry-run, which then prints the commands of the task.
$(TASKS):
	+@$(FRONT) $(DRY_RUN) $@ $(GIVEN)

.venv/ready:
	+@$(FRONT) $(DRY_RUN) install $(GIVEN)
