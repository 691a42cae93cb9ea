"""Training data, one way: records, dataset, features, sampler; conversion and checks."""
