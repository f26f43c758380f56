"""Names of the attributes that a search keeps in its study and in its trials. This file needs no optuna."""

IDENTITY = "trireme:identity"
"""Attribute of a study: its space and objectives, which a later start must share."""
VALUES, STARTS, SECONDS, END, REASON, FOLDER = (
    f"trireme:{name}" for name in ("values", "starts", "seconds", "end", "reason", "folder")
)
"""Attributes of a trial: values by key, starts, seconds so far, how it ended and why, its run folder."""
QUEUED = "trireme:queued"
"""Attribute of a study whose first trials are queued."""
OWN = "trireme:own"
"""Attribute of the trial with the recipe's own values."""
START = "trireme:start"
"""Attribute of a trial that goes on from another one's checkpoint: its path in the study's folder."""
