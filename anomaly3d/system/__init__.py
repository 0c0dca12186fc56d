"""What every room uses and that knows nothing of scans: files, memory, progress, processes, devices."""
