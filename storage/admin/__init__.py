"""Grant a reader, and move the embedded database to another server."""
