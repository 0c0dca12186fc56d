"""A trained detector as a folder that others can use: weights, graphs, thresholds, and what to know about it."""
