"""Readers of volumes: one module for each family of file formats."""
