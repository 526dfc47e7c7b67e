"""Annotations to samples, gates, splits, formats, the report, and the folder that holds them."""
