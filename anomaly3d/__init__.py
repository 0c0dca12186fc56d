"""anomaly3d: learn what a healthy head CT looks like, and find what does not fit."""

__version__ = "0.1.0"
