"""Inner loops that only moving scenes need; the rules are those of `nfc_gs.kernels`."""

import nfc_gs.kernels  # noqa: F401  decides first where compiled code is kept
