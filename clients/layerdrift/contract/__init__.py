"""What is said over the wire: requests, analyses, reports and errors. Needs pydantic alone."""
