"""Loading with a version of the package that came before: the program that `loaders.py` starts.

It is given a store, and on each line of its input, batches of numbers of slices; it answers each
with the seconds that torch's DataLoader takes for them, and the slices of the first batch.
"""

from __future__ import annotations

import json
import sys
import time

from torch.utils.data import DataLoader

from dask_slicer import SliceDataset


def main() -> None:
    """Answer until no batches are asked for."""
    wanted: list[list[int]] = []
    loader = DataLoader(
        SliceDataset(sys.argv[1]),
        batch_sampler=wanted,
        num_workers=int(sys.argv[2]),
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    for line in sys.stdin:
        wanted[:] = json.loads(line)
        if not wanted:
            break
        started = time.perf_counter()
        for number, batch in enumerate(loader):
            if number == 0:
                places = [batch["case_id"], batch["slice_index"].tolist()]
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "places": places}), flush=True)


if __name__ == "__main__":
    main()
