"""Predictions of slices back into volumes on the grids of their scans; metrics in 3D."""
