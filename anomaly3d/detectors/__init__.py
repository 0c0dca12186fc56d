"""What every method offers: a reconstruction and a score for a volume, saved and loaded as one file."""
