"""A phase of a run from its settings to a trained detector."""
