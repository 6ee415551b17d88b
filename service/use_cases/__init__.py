"""What the API does, without HTTP: submit, delete, inspect, evaluate."""
