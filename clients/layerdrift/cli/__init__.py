"""The command line `layerdrift`."""
