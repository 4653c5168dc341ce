"""Sources: lists, feeds, DNSBLs and databases, and reading them."""
