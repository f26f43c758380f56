"""Tasks, one file each. A task decides which model head is trained, by which loss, and which metrics an evaluation
computes. A few more files hold what tasks share.
"""
