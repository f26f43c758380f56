"""Model families, one file each. Every file here that defines ``FAMILY`` is found, so a new family is one new file."""
