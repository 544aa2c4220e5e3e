"""Sphinx configuration: `make docs` builds.

A warning, a failing cell, a public name without an entry, or a guarantee whose test is gone fails the build.
"""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

from docutils import nodes
from nbclient import NotebookClient
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The cells run in a process of their own: from this tree, on the CPU, with pictures inline.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("MPLBACKEND", None)

import jaxnm  # noqa: E402

project = "jaxnm"
author = "the jaxnm authors"
copyright = f"{author}, Apache License 2.0"
version = release = jaxnm.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
nitpicky = False

# ----------------------------------------------------------------------------------------------------------- pages
html_theme = "sphinx_book_theme"
html_title = f"jaxnm {release}"
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2}
html_show_sourcelink = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# ----------------------------------------------------------------------------------------------------------- cells
# "force", not "cache": a cached output would survive a change of the package.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_render_markdown_format = "myst"
# Anything that a cell writes to stderr is a warning of somebody's, hence a failure of the build.
nb_output_stderr = "warn"

# The kernel warns of its local TCP socket on every page; what the cells write is not affected.
NotebookClient.extra_arguments.default_args = (["--IPKernelApp.log_level=ERROR"],)

# ------------------------------------------------------------------------------------------------------- reference
autodoc_default_options = {"members": True, "exclude-members": "replace", "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Status"]
# Docstrings are plain text: a word in single backticks is code.
default_role = "code"

# Modules whose public names must all be on a page of docs/api.
PUBLIC_MODULES = [
    "jaxnm.status",
    "jaxnm.arguments",
    "jaxnm.trees",
    "jaxnm.linalg",
    "jaxnm.first_order",
    "jaxnm.stokes",
    "jaxnm.filtering",
    "jaxnm.tensor_train",
    "jaxnm.tensor_train.quantics",
    "jaxnm.plot.first_order",
    "jaxnm.plot.stokes",
    "jaxnm.plot.filtering",
    "jaxnm.plot.tensor_train",
]


def public_names(module: ModuleType) -> list[str]:
    """Names that users of the module see: all that a package re-exports, what a plain module defines."""
    package = hasattr(module, "__path__")
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value) or hasattr(value, "__wrapped__"))
        and (package or getattr(value, "__module__", None) == module.__name__)
    ]


# Stands for a colon while napoleon runs: it takes "text: more" at the head of an attribute for "type: description".
COLON = "\ue000"


def escape_plain_text(app, what, name, obj, options, lines):
    """Bars, asterisks and trailing underscores mean themselves in our docstrings, outside code and examples."""
    if re.match(r"Alias for field number \d+$", lines[0] if lines else ""):
        lines[:] = [""]
    example, indent = False, ""
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"([|*\\]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
            lines[i] = "".join(parts)
        # "TypeError: this. ValueError: that." is two entries
        if entry := re.match(r"(\s+)\w+Error: ", line):
            indent = entry[1]
        lines[i] = re.sub(r"\. (?=\w+Error: )", f".\n{indent}", lines[i])
    if what in {"attribute", "property"} and lines:
        lines[0] = lines[0].replace(":", COLON)
    lines[:] = "\n".join(lines).split("\n")


def restore_colons(app, what, name, obj, options, lines):
    lines[:] = [line.replace(COLON, ":") for line in lines]


def signature_as_written(app, what, name, obj, options, signature, return_annotation):
    """Annotations as the source spells them: jaxtyping's own text of an ArrayLike is a union of nine types."""
    if signature is None:
        return None
    if what in {"class", "exception"}:
        if dataclasses.is_dataclass(obj):
            fields = [field.name for field in dataclasses.fields(obj)]
        else:
            fields = list(getattr(obj, "_fields", []))
        return (f"({', '.join(fields)})" if fields else ""), None
    if what not in {"function", "method"}:
        return None
    try:
        function = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]
    except (OSError, TypeError):
        return None
    if not isinstance(function, ast.FunctionDef):
        return None
    if function.args.args and function.args.args[0].arg in {"self", "cls"}:
        del function.args.args[0]
    returns = ast.unparse(function.returns) if function.returns else None
    return f"({ast.unparse(function.args)})", returns


def shorten_types(app, doctree):
    """`Array`, where Sphinx writes the private module that JAX keeps it in."""
    for node in list(doctree.findall(nodes.Text)):
        if "jaxlib._jax.Array" in node:
            node.parent.replace(node, nodes.Text(node.replace("jaxlib._jax.Array", "Array")))


def check_complete(app, env):
    """Warn, which fails the build, of each public name that has no entry in the reference."""
    documented = set(env.domains["py"].objects)
    for module_name in PUBLIC_MODULES:
        for name in public_names(importlib.import_module(module_name)):
            if f"{module_name}.{name}" not in documented:
                logging.getLogger(__name__).warning("docs/api lacks the public name %s.%s", module_name, name)


def check_named_tests(app, env):
    """Warn of each test that the guarantees name and that is not there."""
    text = (ROOT / "docs/guarantees.md").read_text()
    for path, test in re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", text):
        if not (ROOT / path).exists() or (test and f"def {test}(" not in (ROOT / path).read_text()):
            logging.getLogger(__name__).warning("guarantees.md names a test that does not exist: %s %s", path, test)


def setup(app):
    app.connect("autodoc-process-docstring", escape_plain_text, priority=100)
    app.connect("autodoc-process-docstring", restore_colons, priority=900)
    app.connect("doctree-read", shorten_types)
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("env-check-consistency", check_complete)
    app.connect("env-check-consistency", check_named_tests)
