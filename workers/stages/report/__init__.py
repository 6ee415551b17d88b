"""Stage report: maps the results of all stages to the wire schema."""
