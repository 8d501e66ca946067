"""Files and tables from outside to checked values: the trust boundary."""
