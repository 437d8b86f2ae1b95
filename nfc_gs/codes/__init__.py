"""How a value in [0, 1] becomes a code word to classify, and comes back."""
