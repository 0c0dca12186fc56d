"""Lightning callbacks of the training: health, pictures, curves, progress."""
