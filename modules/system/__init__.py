"""What the machine gives: atomic writes, checksums, a cache, bounded reads, redaction, hardware, signals."""
