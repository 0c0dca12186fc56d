"""A detector, a cohort and a modality that the package does not know: one file and one config each."""
