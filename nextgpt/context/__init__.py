"""A longer context than the LLM was trained with: scaled positions and sliding windows."""
