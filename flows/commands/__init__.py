"""What each command does; `flows.cli` has their options."""
