"""Reviews where teams already work: pull requests, model registries, experiment trackers, model cards."""
