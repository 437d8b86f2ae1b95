"""What cameras left on disk: picture files, poses, lenses; read, checked and kept, for the data sets to assemble."""
