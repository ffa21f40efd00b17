"""Slicing as arithmetic on numpy arrays: no paths, no configuration, no Dask."""
