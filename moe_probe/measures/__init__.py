"""What a run means: arrays in, arrays out.

Needs numpy and scipy only, and knows nothing of runs, labels' names, tables or files. Seeds are arguments.
"""
