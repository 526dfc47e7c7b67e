"""Measures of drafts against what humans submitted."""
