"""Files of all formats → numbered raw rows. Imports no pyarrow before a table is read: a header costs milliseconds."""
