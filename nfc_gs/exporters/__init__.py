"""A trained model, as other programs' files."""
