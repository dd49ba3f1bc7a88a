"""The configuration of a run: its schema, the presets, and loading from files and options."""
