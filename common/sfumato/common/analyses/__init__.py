"""Analyses: questions that are answered by bounded sums over customers; `catalogue` names those a job can ask."""
