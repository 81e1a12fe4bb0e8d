"""The HTTP server: OpenAI's API in front of one engine.

A request goes through `app.py` (routes and what stands before them: `gate.py`, `access.py`), is read by `body.py`,
becomes chunks in the engine, and leaves as `events.py` or as one JSON body. `service.py` knows whether the server is
loading, ready or draining; `run.py` is the process.
"""
