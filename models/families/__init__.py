"""Model families, one file each: the module paths that trireme needs to wrap, split and shard a model.

Every file here that defines ``FAMILY`` is found automatically.
"""
