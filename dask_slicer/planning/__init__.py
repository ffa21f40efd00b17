"""Plans of runs, from headers alone: cases, splits, disk and memory."""
