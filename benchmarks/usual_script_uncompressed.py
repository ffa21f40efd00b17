"""The usual script without compression: `np.savez`, five copies of every plane as they are."""

from __future__ import annotations

from usual_script import main

if __name__ == "__main__":
    main(compressed=False)
