"""Text, HTML tables, signals and CPUs; nothing here knows of slices."""
