"""The LightningModule and all around fit: optimizers, callbacks, strategies, resume; planning/ says what it takes."""
