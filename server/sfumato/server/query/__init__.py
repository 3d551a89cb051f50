"""SQL over customers that nobody sees: a SELECT becomes a typed question of the kind `query`, or is refused.

SQL is parsed here alone, at the coordinator; what is signed and sent is the typed question.
"""
