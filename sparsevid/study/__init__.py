"""Tables of runs, and what is shown of them. `page` makes one static page of results and of runs.

Lines of results and folders of runs come in, and out comes a file that a browser opens from the disk.

It imports any room below.
"""
