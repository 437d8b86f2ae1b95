"""Many runs that belong together: `nfc-gs sweep`, its queue, and the tables that compare arms seed by seed."""
