"""Fields that move Gaussians."""
