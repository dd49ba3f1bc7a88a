"""One thin Prefect task for each step: a name, retries where they help, logs and artifacts, and a call into nnbuild."""
