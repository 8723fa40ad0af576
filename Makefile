# Two commands, from a bare clone: `make demo` and `make test`. Each makes .venv if it is not there.
#
# PYTHON=python3.12 chooses the interpreter, VENV=elsewhere the environment, CHROMIUM=/path/to/it the browser that the
# tests of `ssamba export --web` drive.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := $(VENV)/.installed
comma := ,

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test browser check clean
.DELETE_ON_ERROR:

# The environment of the tests if it is there, else one without what only they need.
demo: $(or $(wildcard $(STAMP)),$(VENV)/.installed-demo)
	@echo "== demo: embedding the recordings in demo/audio"
	$(BIN)/python demo/demo.py

test: browser check
	@echo "== tests"
	$(BIN)/python -m pytest
	@echo "== notebooks"
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=300 examples/notebooks

# What the tests of the web page need besides Python: Chromium or Chrome, and npm. Debian's, if they are missing and
# this is root; else the message says what to install.
browser:
	@missing=; $(PYTHON) tests/browser.py >/dev/null || missing=chromium; \
	command -v npm >/dev/null || missing="$$missing npm"; test -z "$$missing" || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "== installing:" $$missing && \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; } || { \
	  echo "the tests need" $$missing "(Debian: apt install" $$missing"; elsewhere: Chromium or Chrome, CHROMIUM=/path/to/it if" \
	  "it is not found, and Node.js, which brings npm)"; exit 1; }

check: $(STAMP)
	@echo "== lint, format, spelling, schemas, types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/mypy
	@echo "== documentation"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# torch alone and first, so that nothing later replaces the build that the constraint file names.
define install
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "ssamba needs Python 3.10 or later, this is " + sys.version.split()[0])'
	@echo "== environment: $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "cannot make a virtual environment with $(PYTHON): install its venv module (Debian: apt install python3-venv)"; exit 1; }
	@echo "== installing torch (a few hundred megabytes)"
	$(BIN)/python -m pip install --quiet --retries 5 "torch==2.13.0"
	@echo "== building ssamba's kernels and installing it with $(1)"
	$(BIN)/python -m pip install --quiet --retries 5 --editable "$(2)"
	@touch $@
endef

SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/ssamba/ops/cpp/csrc/*)

$(STAMP): $(SOURCES)
	$(call install,all that the tests use,.[all$(comma)dev])

$(VENV)/.installed-demo: $(SOURCES)
	$(call install,what the demo uses,.[figures])

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
