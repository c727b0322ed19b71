# Every target below works from a fresh clone: what it needs is set up in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written when the installation is complete; holds the folder that it was made for.
STAMP := $(VENV)/installed
# Bars for large downloads where somebody watches, otherwise only what goes wrong. What is used is
# compiled when it is imported first, which is a fraction of it.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
    $$(test -t 2 || echo --progress-bar off)
comma := ,
CHROMIUM ?= chromium
# The default suite runs in up to four processes, each with one thread.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
# A file of tests is one worker's, as its tests share what they build. Not those of many tests first:
# those of few, long ones would be left to one worker at the end.
DEAL := --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-cuda test-lowest test-medical .test-medical test-slow test-long \
    test-export test-ray test-detection test-torchgeo test-federated test-serve test-deploy \
    test-report test-notebook test-minimal test-examples test-wheel lint docs \
    docs-check clean

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## Set up .venv: the package (editable) and what its tests need
	@echo "Ready: $(BIN)/python"

demo: $(STAMP)  ## Train the demo: head-only, VPT-deep, LoRA on real images (6 minutes on 2 cores)
	@$(BIN)/python tools/demo.py

test: $(STAMP)  ## Run the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) $(DEAL)

test-lowest:  ## Run the same tests with the lowest version of every requirement, in .venv-lowest
	@$(MAKE) test VENV=.venv-lowest

test-medical:  ## Run the tests of NIfTI and DICOM, with the extra that they need, in .venv-medical
	@$(MAKE) .test-medical VENV=.venv-medical

.test-medical: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_medical.py

LONGEST := tests/test_suite.py tests/test_launch.py
# These first: at the end one worker would be left with them.
test-slow: $(STAMP)  ## Run the slow tests: graphs of every kind, whole trainings, signals
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n $(WORKERS) $(DEAL) \
	    $(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/test_*.py))

test-long: $(STAMP)  ## Run the longest tests, before a release: slow ones check the same on less
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m long -n $(WORKERS) $(DEAL)

test-cuda: $(STAMP)  ## Run the tests that need a GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m cuda -n $(WORKERS) tests/test_cuda.py

# .venv's packages, and those of a file of requirements beside them: $(call beside,NAME).
define beside
	@$(BIN)/python -m venv --without-pip .venv-$(1)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" \
	    % sysconfig.get_path("purelib"))' > "$$(.venv-$(1)/bin/python -c \
	    'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	@.venv-$(1)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --requirement requirements/$(1).txt
endef

test-export: $(STAMP)  ## Run the tests of exported models with ONNX Runtime, in .venv-export
	$(call beside,export)
	OMP_NUM_THREADS=1 .venv-export/bin/python -m pytest -q -m '' -n $(WORKERS) \
	    tests/test_export_onnx.py

test-ray: $(STAMP)  ## Run suites and the server on a Ray cluster whose workers are killed, in .venv-ray
	$(call beside,ray)
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check \
	    --requirement requirements/serve.txt --requirement requirements/client.txt
	OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest -q -m '' tests/test_suite.py -k ray
	OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest -q -m '' tests/test_ray_serve.py

test-detection: $(STAMP)  ## Run the tests of detection on mmdet, in .venv-detection
	$(call beside,detection)
	@.venv-detection/bin/python -m pip install --quiet --disable-pip-version-check \
	    --requirement requirements/export.txt
	OMP_NUM_THREADS=1 .venv-detection/bin/python -m pytest -q -m '' -n $(WORKERS) $(DEAL) \
	    tests/test_detection.py tests/test_detection_operators.py tests/test_coco.py \
	    tests/test_export_detection.py tests/test_query_detector.py tests/test_panoptic.py \
	    tests/test_panoptic_data.py tests/test_mask2former_head.py tests/test_export_panoptic.py

test-torchgeo: $(STAMP)  ## Run the tests of torchgeo's data sets, in .venv-torchgeo
	$(call beside,torchgeo)
	OMP_NUM_THREADS=1 .venv-torchgeo/bin/python -m pytest -q -m '' tests/test_torchgeo.py

test-federated: $(STAMP)  ## Train federations with Flower, in .venv-federated
	$(call beside,federated)
	OMP_NUM_THREADS=1 FLWR_TELEMETRY_ENABLED=0 .venv-federated/bin/python -m pytest -q -m '' \
	    tests/test_federated.py tests/test_federated_flower.py

# The page's need a browser as test-report does.
test-serve: $(STAMP)  ## Run the tests of the server, its client and its page, in .venv-serve
	$(call beside,serve)
	@.venv-serve/bin/python -m pip install --quiet --disable-pip-version-check \
	    --requirement requirements/report.txt --requirement requirements/export.txt
	OMP_NUM_THREADS=1 CHROMIUM=$(CHROMIUM) .venv-serve/bin/python -m pytest -q -m '' \
	    tests/test_serving.py tests/test_serving_graph.py tests/test_serving_page.py tests/test_client.py \
	    tests/test_labelling.py

# promtool, if it is here (`apt-get install prometheus`), checks the alerts.
test-deploy: $(STAMP)  ## Check the image, the manifests and the dashboards of deploy/, in .venv-deploy
	$(call beside,deploy)
	@.venv-deploy/bin/python -m pip install --quiet --disable-pip-version-check \
	    --requirement requirements/serve.txt
	OMP_NUM_THREADS=1 .venv-deploy/bin/python -m pytest -q -m '' tests/test_deploy.py

# The browser must be there: Debian's is `apt-get install chromium`; CHROMIUM may name another.
test-report: $(STAMP)  ## Look at report.html in a browser (chromium must be there), in .venv-report
	$(call beside,report)
	OMP_NUM_THREADS=1 CHROMIUM=$(CHROMIUM) .venv-report/bin/python -m pytest -q -m '' \
	    tests/test_report_browser.py

# Its cells call vpt-dense, which here finds what exports beside .venv's packages.
test-notebook: $(STAMP)  ## Run the tutorial, a notebook (5 minutes on 2 cores), in .venv-notebook
	$(call beside,notebook)
	@printf '#!/bin/sh\nexec "%s" -m vpt_dense "$$@"\n' "$(CURDIR)/.venv-notebook/bin/python" \
	    > .venv-notebook/bin/vpt-dense && chmod +x .venv-notebook/bin/vpt-dense
	PATH="$(CURDIR)/.venv-notebook/bin:$$PATH" .venv-notebook/bin/python -m pytest -q --nbmake \
	    --nbmake-timeout 1800 docs/tutorial.ipynb

test-examples: $(STAMP)  ## Run the examples with Lightning and Trainer, in .venv-examples
	$(call beside,examples)
	OMP_NUM_THREADS=1 .venv-examples/bin/python -m pytest -q -m '' \
	    tests/test_examples.py tests/test_plain_engines.py

test-minimal: $(STAMP)  ## Use plain PyTorch where nothing of OpenMMLab is installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/run_minimal.py

test-wheel:  ## Build the wheel and use it in an environment of its own, which goes afterwards
	@PYTHON=$(PYTHON) bash tests/run_wheel.sh

lint: $(STAMP)  ## Check the code's style with ruff
	$(BIN)/python -m ruff check .

# What Sphinx warns of (a link or a heading that is not there) fails.
SPHINX = .venv-docs/bin/python -m sphinx -q -W --keep-going -c docs -d docs/_build/doctrees

docs: $(STAMP)  ## Build the documentation as HTML in docs/_build/html, with .venv-docs
	$(call beside,docs)
	$(SPHINX) . docs/_build/html

docs-check: docs  ## Ask every link of the documentation (needs the internet)
	$(SPHINX) -b linkcheck . docs/_build/linkcheck

clean:  ## Remove caches and build folders; keep .venv, data and runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache docs/_build docs/api
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# A folder that was moved or copied needs a new installation: the old one points to its old place.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

# pip's own test of a virtual environment that is absent, half made, or made by hand.
$(STAMP): setup.cfg pyproject.toml $(wildcard requirements/*.txt)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	$(BIN)/python -m ensurepip >/dev/null 2>&1 || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	        echo "error: Python 3.10 or newer is needed, '$(PYTHON)' is not; name one:" \
	            "make $(or $(MAKECMDGOALS),venv) PYTHON=python3.12" >&2; exit 1; }; \
	    echo "Making a virtual environment in $(VENV) with $$($(PYTHON) --version)"; \
	    $(PYTHON) -m venv $(VENV); }
	@echo "Installing vpt_dense and its requirements into $(VENV) (the first time: minutes and" \
	    "gigabytes, most of them torch; details in $(VENV)/install.log)"
	@rm -f $(VENV)/install.log
	@sed -n 's/^\([A-Za-z0-9_-]*\)>=\([^,; ]*\).*/\1==\2/p' requirements/runtime.txt \
	    requirements/mminstall.txt requirements/tests.txt > $(VENV)/lowest.txt
	@$(PIP_INSTALL) --log $(VENV)/install.log --editable \
	    '.[tests$(if $(filter %-medical,$(VENV)),$(comma)medical)]' \
	    $(if $(filter %-lowest,$(VENV)),--constraint $(VENV)/lowest.txt)
# opencv-python needs libraries of a desktop (libxcb, libGL, libglib). Where they are absent, the
# same version's headless build is laid over it: both own the folder cv2, and mmcv, mmseg and we
# ask for opencv-python by name, so that uninstalling it would only bring it back.
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
	    echo "No desktop libraries here: putting OpenCV's headless build in place"; \
	    $(PIP_INSTALL) --log $(VENV)/install.log --no-deps --force-reinstall \
	        "opencv-python-headless==$$($(BIN)/python -c \
	            'from importlib.metadata import version; print(version("opencv-python"))')"; \
	    $(BIN)/python -c 'import cv2'; }
# The demo then runs without network. Where there is none now, it tries again.
ifeq ($(VENV),.venv)
	@$(BIN)/python tools/demo.py --download || true
endif
	@echo "$(CURDIR)" > $@
