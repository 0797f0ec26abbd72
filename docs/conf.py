"""Configuration of the documentation: ``make docs`` builds it, without network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from flwr_autoflip import __version__

project = "flwr-autoflip"
author = "The flwr-autoflip authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",  # docs/mathml.py
]
exclude_patterns = ["results", "build"]
html_theme = "furo"
html_title = f"flwr-autoflip {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # NumPy docstrings say types, and shapes beside them
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
