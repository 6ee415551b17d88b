"""Ways to run layerdrift: the embedded stack on one machine, and compose files."""
