"""The callbacks that come with trireme, one file each."""
