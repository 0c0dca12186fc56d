"""Findings -> maps, scores, p-values."""
