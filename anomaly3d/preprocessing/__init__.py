"""The paper's seven steps from a head CT in HU to a small volume in [-1, 1], one concept a file."""
