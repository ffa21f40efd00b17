"""Dataset layouts: one module for each way in which datasets lie on disk."""
