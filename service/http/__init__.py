"""What routes and middleware share: problem documents, access, conditional answers, concurrency limits."""
