"""Tasks, one file each: which model head is trained, by which loss, and which metrics an evaluation computes. A few
more files hold what tasks share.
"""
