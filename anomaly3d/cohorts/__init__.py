"""Who was scanned: adapters from data sets to a manifest, and the phantom cohort."""
