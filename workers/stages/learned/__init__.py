"""Stage `learned`: what a fine-tune taught a language model."""
