"""Serving a model: chat in a terminal, a web page, an API."""
