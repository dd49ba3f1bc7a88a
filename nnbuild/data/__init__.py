"""Reading images and labels from wherever they are, and the checks on what was read."""
