"""From corrections to a better model: held-out samples, training jobs, adapters, promotion."""
