"""Splats and a camera, made into a picture of any number of channels."""
