"""One scan on its own grid: reading it, moving it to another grid, and the manifest that names it."""
