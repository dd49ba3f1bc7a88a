"""The flows, which read as recipes, and the command line beside them."""
