"""Numbers in, numbers out: AUC, intervals, tests, conformal p-values, thresholds."""
