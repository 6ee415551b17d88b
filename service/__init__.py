"""The HTTP API: a LitServe server in front of the records, the queue and the reports. Needs no torch."""
