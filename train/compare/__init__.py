"""Methods compared: trained alike from one checkpoint, measured alike, one table."""
