"""Where checkpoints and data sets come from: URIs to pinned files, under the rules of the settings."""
