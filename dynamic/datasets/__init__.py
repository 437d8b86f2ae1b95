"""Moving scenes on disk."""
