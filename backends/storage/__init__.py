"""Objects in S3 and what the product keeps there: reports, artifacts, uploads; the names of every key."""
