"""The callbacks that come with trireme, their base class, and helpers that they share."""
