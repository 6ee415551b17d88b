"""Stage causal: grafts, the freeze sweep, ablations, and the recommendation that they test."""
