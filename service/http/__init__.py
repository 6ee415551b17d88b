"""What routes share of HTTP: problem documents, access, conditional answers, limits."""
