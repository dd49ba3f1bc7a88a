"""What a process needs around its work: limits, printable text, reports to the outside."""
