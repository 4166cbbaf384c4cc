"""The way of a request: ``engine.Engine.sign_batch`` is the whole of it."""
