"""1. The internet -> clean documents: read, extract, filter, deduplicate, anonymise, and a record of what each step removed."""
