"""One file a learner: what takes many rounds."""
