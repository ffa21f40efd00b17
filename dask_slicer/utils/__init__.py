"""Text, HTML tables, signals and CPUs, without knowledge of slices."""
