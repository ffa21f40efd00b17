"""The command `dask-slicer` as `python -m dask_slicer`."""

from dask_slicer.cli.main import main

if __name__ == "__main__":
    main(prog_name="dask-slicer")
