"""Prefect flows, their deployment, and the command line."""
