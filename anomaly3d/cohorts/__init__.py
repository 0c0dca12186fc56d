"""Who was scanned: manifest, split, adapters to data sets, and the phantom cohort."""
