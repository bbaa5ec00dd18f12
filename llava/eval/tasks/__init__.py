"""One small file a benchmark: it reads questions and answers and returns a dict of scores."""
