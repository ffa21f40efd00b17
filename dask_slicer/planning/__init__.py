"""Plans of runs: cases, splits, disk and memory, from headers alone."""
