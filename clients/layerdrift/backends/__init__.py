"""What service and workers share behind the wire: settings, records in Redis, objects in S3, the queue, sources.

Needs the extra `backends`. Importing a module of it connects to nothing.
"""
