"""Checkpoints into memory, texts into batches, and what a transformer is made of."""
