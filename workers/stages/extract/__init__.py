"""Stage extract: runs both models over the texts and leaves moments, samples, noise floors and held-out rows."""
