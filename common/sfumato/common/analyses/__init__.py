"""One file an analysis: question, one customer's contribution and its bound, reading of the total."""
