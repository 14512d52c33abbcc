"""1. The internet -> clean text -> token batches."""
