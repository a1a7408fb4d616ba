"""Everything about a run directory: its file names, their schemas, the metric table, the reader and the writer."""
