"""Numbers and figures from a table of scores; detectors are known only by ``reconstruct`` and ``score``."""
