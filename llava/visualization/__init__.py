"""Look inside a model: which pixels an answer's words attend to."""
