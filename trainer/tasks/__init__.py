"""Tasks, one file each: which model head is trained, by which loss, and which metrics an evaluation computes."""
