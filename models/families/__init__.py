"""Model families, one file each: the module paths and other properties that trireme needs to wrap, split and shard a
model.

Every file here that defines ``FAMILY`` is found automatically.
"""
