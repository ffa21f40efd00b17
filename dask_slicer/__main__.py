"""`python -m dask_slicer` is `dask-slicer`."""

from dask_slicer.cli import main

if __name__ == "__main__":
    main(prog_name="dask-slicer")
