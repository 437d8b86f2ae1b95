"""Files on disk, read into a `Scene`."""
