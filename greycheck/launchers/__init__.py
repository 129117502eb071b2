"""The programs that mail servers run: ``install`` writes them, ``doctor`` checks them."""
