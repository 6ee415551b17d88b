"""Middleware around every route, and connection limits below it."""
