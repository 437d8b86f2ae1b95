"""What the members of `dynamic.deformations` share: what a network says of a Gaussian, and how a field wakes up."""
