"""The stages on tiny real models: known answers of whole comparisons. No server."""
