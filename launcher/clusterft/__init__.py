"""The controller half of clusterft. Importing the package imports nothing else.

Reading (`spec`, `hosts`, `facts`), judging (`checks`), planning (`plan`) and acting (`remote`, `runtime`,
`apply`) are kept apart; docs/architecture.md has the map, and `make check` enforces it.
"""

__version__ = "0.1.0"
