"""How long a request will take: the work in it, and the rates of the workers that are there."""
