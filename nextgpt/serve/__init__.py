"""`nextgpt serve`: OpenAI's API over the pipeline."""
