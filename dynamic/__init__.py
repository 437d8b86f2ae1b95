"""Moving scenes: only what time adds to nfc_gs. Its members enter by dotted kinds, `kind: dynamic.deformations.<name>`."""
