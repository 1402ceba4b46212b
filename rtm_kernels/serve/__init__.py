"""`rtm serve`: the solver over HTTP. The front speaks HTTP and holds the queue; a child process solves.

Imported when first needed: it takes the packages of the extra `serve`.
"""
