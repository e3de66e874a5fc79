"""Sphinx configuration: `make docs`."""

from equijax import __version__

project = "equijax"
author = "The equijax developers"
copyright = author
release = __version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"equijax {release}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
