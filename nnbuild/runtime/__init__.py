"""What nnbuild needs to know of the process and the machine that it runs on."""
