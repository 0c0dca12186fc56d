"""Head CTs that nobody had: seeded, healthy or with a bleed, as NIfTI in HU."""
