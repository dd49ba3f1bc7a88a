"""What a process needs around its work: limits, signals, masked and printable text, reports to the outside."""
