"""What the API does, without HTTP: submit, inspect, evaluate."""
