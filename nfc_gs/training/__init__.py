"""From an experiment's settings to a trained model."""
