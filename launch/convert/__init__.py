"""Convert training configurations of other tools to recipes (``trireme convert-args``)."""
