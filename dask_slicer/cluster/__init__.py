"""Dask schedulers and workers; nothing here knows of cases or outputs."""
