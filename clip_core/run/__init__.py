"""A run directory: its file names and schemas, the metric table, the reader, the writer and the requests."""
