"""Draws a report for people: HTML and Markdown from the report's JSON alone. Needs the extra `render`."""
