"""Process-level services: environment, limits, signals, safe text, webhook."""
