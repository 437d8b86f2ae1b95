"""The CPU's inner loops, compiled by Numba: arrays in, arrays out.

Every kernel is a module-level function, so that Numba's on-disk cache serves the second start. They know nothing of
torch, settings or Gaussians' parameterizations; the modules that call them carry the mathematics' types and shapes.
"""
