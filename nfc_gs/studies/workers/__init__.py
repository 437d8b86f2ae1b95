"""Where a study's runs are started: this machine, or a cluster."""
