"""The LightningModules that train a detector, one a phase."""
