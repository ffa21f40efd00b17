"""Progress of runs: terminal, notebook, `dask-slicer watch` and the run page."""
