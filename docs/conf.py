"""How Sphinx builds the pages: `make docs` writes docs/reference first, from the code."""

project = "scalablevit"
author = "the scalablevit authors"
project_copyright = "2026, the scalablevit authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "scalablevit"
html_static_path: list[str] = []
exclude_patterns = ["_build", "examples", "requirements.*"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpicky = True
