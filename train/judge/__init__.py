"""Who is better: a judge compares the answers of two models, in both orders."""
