"""Jobs as records in Redis and S3: their state, their events, their ids, repeated submissions."""
