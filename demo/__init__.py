"""The chat in the browser. It talks to the pipeline only."""
