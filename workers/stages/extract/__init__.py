"""Stage extract: runs both models over the texts and accumulates moments, samples, nulls and rows for autoencoders."""
