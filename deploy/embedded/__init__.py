"""The whole of layerdrift on one machine, without Docker: Valkey, SeaweedFS, the API and one worker on loopback."""
