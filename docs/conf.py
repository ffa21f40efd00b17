"""Settings of Sphinx: `sphinx-build -W --keep-going docs docs/_build` builds the site."""

from __future__ import annotations

import dask_slicer

project = "dask_slicer"
author = "The dask_slicer developers"
project_copyright = author
version = release = dask_slicer.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
# Links to headings, down to the third level, as GitHub makes them.
myst_heading_anchors = 3
# `name` in a docstring links to the name where it is public.
default_role = "py:obj"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Types are in the Parameters sections; twice would be too much.
autodoc_typehints = "none"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "dask_slicer"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
