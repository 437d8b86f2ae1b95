"""What listens to a training: shown, logged, saved."""
