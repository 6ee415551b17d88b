"""What the service and the workers share: settings, storage, job records, the queue, sources of checkpoints and data.

Knows neither HTTP routes nor torch. Importing a module of it connects to nothing.
"""
