"""Stage compare: similarity, drift, zones, outputs and the predicted recommendation."""
