"""Affines of volumes that do not lie straight."""

from __future__ import annotations

import numpy as np


def oblique(
    degrees: float = 20.0, spacing: tuple[float, float, float] = (2.0, 1.5, 3.0)
) -> np.ndarray:
    """Return an RAS+ affine turned about the x axis, off the origin."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) * spacing
    affine[:3, 3] = (-7.0, 11.0, 5.0)
    return affine
