"""Serving a trained adapter: over HTTP and in other engines."""
