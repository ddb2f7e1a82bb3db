"""Names for features, one file per source; sources are never merged silently, and each name carries its null."""
