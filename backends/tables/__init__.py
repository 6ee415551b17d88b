"""Data set files as rows: formats, encodings, compression. Opens no network connection."""
