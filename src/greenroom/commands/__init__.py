"""Commands of the command line that are more than one call of the Python API; `cli` lists them all."""
