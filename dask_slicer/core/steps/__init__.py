"""Steps between a volume and its slices; those that change the grid have an inverse."""
