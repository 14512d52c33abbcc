"""2. Documents -> token shards -> batches."""
