"""The serving room: chat in a terminal, a web page, an API."""
