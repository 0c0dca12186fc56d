"""Plain nn.Modules that know nothing of Lightning."""
