"""The head in MNI space: the maps that phantoms are painted from and the template that scans are registered to."""
