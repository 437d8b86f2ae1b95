"""Moving runs, as other programs' files."""
