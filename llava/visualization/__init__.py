"""Pictures of what a model computes, such as which pixels an answer's words attend to."""
