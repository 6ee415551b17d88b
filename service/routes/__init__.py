"""The HTTP API, a module for each resource: parameters in, use case, answer out."""
