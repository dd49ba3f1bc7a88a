"""Prefect tasks. Each names, logs, retries and illustrates one call into nnbuild."""
