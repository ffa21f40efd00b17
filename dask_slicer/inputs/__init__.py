"""Finding the cases of a dataset and reading their volumes."""
