"""Running a plan as Dask graphs of load, slice and save."""
