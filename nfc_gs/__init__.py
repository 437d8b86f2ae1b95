"""Gaussian splatting with encoded-bit classification."""

__version__ = "0.1.0"
