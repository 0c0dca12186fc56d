"""Prepared volumes -> batches."""
