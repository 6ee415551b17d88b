"""Stage sae: trains sparse autoencoders on both models, matches their latents and shows what they respond to."""
