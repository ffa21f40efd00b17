"""What Dask itself costs a case: three chained tasks that do nothing, run as dask_slicer runs its.

    python benchmarks/raw_dask.py 5000 --num_workers 2

Same cluster, same settings, same bounded number of graphs in flight; no files, no arrays.
"""

from __future__ import annotations

import argparse
import time

from dask.delayed import Delayed, delayed

from dask_slicer.cluster.local import local_client
from dask_slicer.execution.futures import run_graphs


def nothing(number: object) -> object:
    """Return what was given."""
    return number


def graph(numbers: tuple[int, ...]) -> Delayed:
    """Return load → slice → save of a case, with nothing in them."""
    (number,) = numbers
    loaded = delayed(nothing, pure=False)(number, dask_key_name=("load", number))
    sliced = delayed(nothing, pure=False)(loaded, dask_key_name=("slice", number))
    return delayed(nothing, pure=False)(sliced, dask_key_name=("save", number))


def main() -> None:
    """Run the graphs and print the seconds that they took, workers' start excluded."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", type=int)
    parser.add_argument("--num_workers", type=int, default=2)
    options = parser.parse_args()
    numbers = iter(range(options.cases))

    def next_graph(_: int) -> tuple[int, ...]:
        number = next(numbers, None)
        return () if number is None else (number,)

    with local_client(
        options.num_workers, memory_limit=2_000_000_000, dashboard_address="127.0.0.1:0"
    ) as client:
        started = time.perf_counter()
        for _ in run_graphs(client, next_graph, graph):
            pass
        print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
