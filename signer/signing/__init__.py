"""The way of a request: ``engine.Engine._sign_lot`` is the whole of it."""
