"""The vocabulary both sides speak; it knows neither side."""
