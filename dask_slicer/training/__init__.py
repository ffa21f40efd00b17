"""Datasets for training, read from an output."""
