"""Prefect tasks. Each wraps one call into nnbuild with a name, logs, retries and artifacts."""
