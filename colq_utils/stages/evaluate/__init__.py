"""NDCG@5 of every variant, task, language and query."""
