"""Where the Gaussians are at a time; moving fields live in `dynamic.deformations`."""
