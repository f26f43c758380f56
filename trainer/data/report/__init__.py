"""Prepare what ``trireme data`` and the reports of runs show of a recipe's data: statistics of data sets, and samples
in a form that can be displayed.
"""
