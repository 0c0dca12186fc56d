"""A scan -> a prepared volume in MNI space and the way back, one modality a file."""
