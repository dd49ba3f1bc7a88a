"""What each command does; `flows.signatures` has their options."""
