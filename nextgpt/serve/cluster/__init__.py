"""The server on several machines, by Ray Serve: the LLM and each decoder scale by themselves."""
