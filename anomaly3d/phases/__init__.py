"""The three phases of training, one LightningModule each."""
