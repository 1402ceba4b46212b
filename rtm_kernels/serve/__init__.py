"""`rtm serve`: the solver over HTTP, in one process: uvicorn, FastAPI and an `engine.Service`.

Imported when first needed: it takes the packages of the extra `serve`.
"""
