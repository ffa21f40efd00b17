"""The output directory: names, lock, journal, index, reading."""
