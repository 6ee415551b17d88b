"""Error rates and coverage by simulation: what a rule says of data whose truth is known."""
