"""Engines over HTTP: ``slmc serve``.

Read ``settings``, ``requests`` (what clients send), ``answering`` (the best items for a batch of
requests), ``batching`` (from requests to batches), ``engines`` (several engines, and their
reload), ``app`` (the routes), ``gate`` (what each request passes), and ``run``
(the process: socket, signals, drain). Imported by ``commands``. Only this folder imports FastAPI,
uvicorn and prometheus-client, the extra ``serve``.
"""
