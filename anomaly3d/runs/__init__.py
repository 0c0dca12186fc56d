"""Where a result came from: the folders of a run, their lineage, what loggers get."""
